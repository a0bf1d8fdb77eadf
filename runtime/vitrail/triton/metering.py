"""Publishes observations on Triton's metrics port, from a thread of its own.

An observation crosses to the server's process: a decoder that waited for that would lose it at every token. A histogram
takes them one by one, so of very many it gets a sample.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from vitrail.metrics import Series

log = logging.getLogger(__name__)

# The gauges, and the totals of the counters, at this moment.
Read: TypeAlias = Callable[[], Mapping[Series, float]]

INTERVAL_S = 1.0
# "off": nothing is published.
VARIABLE = "VITRAIL_METRICS"
# Observations of one histogram that are published at once; of more, an even sample.
SAMPLE = 32
_PENDING_LIMIT = 1 << 16
_CLOSE_TIMEOUT_S = 2.0


class Families:
    """The families of `series` in Triton's registry, their children made when they are first needed.

    `backend` is triton_python_backend_utils. Raises what that raises where the server keeps no metrics.
    """

    def __init__(self, backend: Any, series: Iterable[Series], *, model_name: str) -> None:
        self._labels = {"model_name": model_name}
        self._families = {
            each: backend.MetricFamily(
                name=each.name, description=each.help, kind=getattr(backend.MetricFamily, each.kind.upper())
            )
            for each in series
        }
        self._children: dict[tuple[Series, str], Any] = {}
        for each in self._families:
            for value in each.values:
                self.child(each, value)

    def child(self, series: Series, label: str = "") -> Any:
        key = (series, label)
        if key not in self._children:
            own = {series.label: label} if series.label else {}
            buckets = {"buckets": list(series.buckets)} if series.buckets else {}
            self._children[key] = self._families[series].Metric(labels=self._labels | own, **buckets)
        return self._children[key]

    def drop(self) -> None:
        """Triton wants the children gone before their families."""
        self._children.clear()
        self._families.clear()


class Meter:
    """An Observer. Every `interval_s` it publishes what was added meanwhile and what `read` tells.

    interval_s None: it has no thread, and publishes at `publish` only.
    """

    def __init__(self, families: Families, *, read: Read, interval_s: float | None = INTERVAL_S) -> None:
        self._families = families
        self._read = read
        self._pending: deque[tuple[Series, float, str]] = deque()
        self._published: dict[Series, float] = {}
        self._lost = self._over = False
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        if interval_s is not None:
            self._thread = threading.Thread(target=self._run, args=(interval_s,), name="metrics", daemon=True)
            self._thread.start()

    def add(self, series: Series, value: float = 1.0, label: str = "") -> None:
        if len(self._pending) < _PENDING_LIMIT:
            self._pending.append((series, value, label))
        elif not self._lost:
            self._lost = True
            log.warning("observations come faster than they can be published; some are lost")

    def close(self) -> None:
        """Publish the rest and let go of the families."""
        self._closed.set()
        if self._thread is None:
            self.publish()
            self._families.drop()
        else:
            self._thread.join(_CLOSE_TIMEOUT_S)

    def publish(self) -> None:
        """Where it cannot, it ends, with a line in the log."""
        if self._over:
            return
        try:
            self._publish()
        except Exception:
            log.exception("metrics cannot be published any more")
            self._over = True

    def _run(self, interval_s: float) -> None:
        while not self._closed.wait(interval_s) and not self._over:
            self.publish()
        self.publish()
        self._families.drop()

    def _publish(self) -> None:
        added: defaultdict[tuple[Series, str], list[float]] = defaultdict(list)
        for _ in range(len(self._pending)):
            series, value, label = self._pending.popleft()
            added[series, label].append(value)
        for (series, label), values in added.items():
            child = self._families.child(series, label)
            if series.kind == "counter":
                child.increment(sum(values))
                continue
            for value in values if len(values) <= SAMPLE else random.sample(values, SAMPLE):
                child.observe(value)
        for series, value in self._read().items():
            self._take(series, value)

    def _take(self, series: Series, value: float) -> None:
        """Of a counter's total, what is new since the last time."""
        before = self._published.get(series, 0.0)
        if series.kind == "gauge" and value != self._published.get(series):
            self._families.child(series).set(value)
        elif value > before and series.kind == "counter":
            self._families.child(series).increment(value - before)
        self._published[series] = value


class Unmetered:
    """The Observer of a server that keeps no metrics."""

    def add(self, series: Series, value: float = 1.0, label: str = "") -> None:
        pass

    def publish(self) -> None:
        pass

    def close(self) -> None:
        pass


def open_meter(
    backend: Any,
    series: Iterable[Series],
    *,
    model_name: str,
    read: Read,
    environment: Mapping[str, str],
    interval_s: float | None = INTERVAL_S,
) -> Meter | Unmetered:
    """A meter; one that does nothing where there are no series, they are off, or the server keeps none (a log's line)."""
    series = tuple(series)
    if not series or environment.get(VARIABLE) == "off":
        return Unmetered()
    try:
        families = Families(backend, series, model_name=model_name)
    except Exception as error:  # noqa: BLE001 - the backend's own type, for every cause
        log.warning("no metrics are published: %s", error)
        return Unmetered()
    return Meter(families, read=read, interval_s=interval_s)
