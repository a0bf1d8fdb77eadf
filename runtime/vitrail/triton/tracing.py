"""Sends the spans of traced requests to a collector (OTLP over HTTP, JSON) from a thread of its own.

Triton traces requests itself where it is told to, and decides which; for those the decoder adds what it knows.
"""

from __future__ import annotations

import http.client
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from queue import Empty, Full, Queue
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from vitrail.errors import OptionError
from vitrail.metrics import Ending
from vitrail.spans import Asked, Span, export_request, parent_from, request_spans

log = logging.getLogger(__name__)

# OpenTelemetry's own variables.
URL_VARIABLE = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
HEADERS_VARIABLE = "OTEL_EXPORTER_OTLP_HEADERS"

_QUEUE_LIMIT = 1024
_BATCH = 128
_TIMEOUT_S = 10.0
_CLOSE_TIMEOUT_S = 2.0
_DEFAULT_PATH = "/v1/traces"


def collector_url(url: str) -> str:
    """The URL that traces are sent to; /v1/traces where it has no path. Raises OptionError for what is none."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        valid = parts.scheme in {"http", "https"} and parts.hostname and (parts.port or True)
    except ValueError:
        valid = False
    if not valid or any(character in url for character in " ,\t\n"):
        raise OptionError(
            f"'{url}' is no collector's URL; give that of OTLP over HTTP, such as http://localhost:4318/v1/traces"
        )
    return parts._replace(path=parts.path if parts.path.strip("/") else _DEFAULT_PATH).geturl()


class Ended(NamedTuple):
    """A traced request that has ended, not yet made into spans."""

    asked: Asked
    ending: Ending
    ended_ns: int

    def spans(self) -> list[Span]:
        report, error, reasons = self.ending
        return request_spans(self.asked, report, error, reasons, ended_ns=self.ended_ns)


class Tracer:
    """Takes the endings of traced requests and sends their spans. A collector that is away costs them and one warning."""

    def __init__(
        self, url: str, *, model_name: str, version: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self._url = collector_url(url)
        self._model_name = model_name
        self._version = version
        self._headers = {"Content-Type": "application/json", **(headers or {})}
        self._queue: Queue[Ended | None] = Queue(_QUEUE_LIMIT)
        self._in_trouble = False
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    def ending(self, context: str | None, request_id: str) -> Callable[[Ending], None]:
        """What to call when a request ends. context: Triton's for this request, JSON; None where it is not traced."""
        parent = parent_from(_traceparent(context))
        if parent is None:
            return _ignore
        asked = Asked(parent, request_id, self._model_name, time.time_ns())

        def end(ending: Ending) -> None:
            try:
                self._queue.put_nowait(Ended(asked, ending, time.time_ns()))
            except Full:
                self._warn("spans come faster than they can be sent")

        return end

    def close(self) -> None:
        """Send what is queued, within two seconds."""
        try:
            self._queue.put(None, timeout=_CLOSE_TIMEOUT_S)
        except Full:
            return
        self._thread.join(_CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        over = False
        while not over and (ended := self._queue.get()) is not None:
            batch = [ended]
            while len(batch) < _BATCH and not over:
                try:
                    more = self._queue.get_nowait()
                except Empty:
                    break
                if more is None:
                    over = True
                else:
                    batch.append(more)
            self._try_send([span for each in batch for span in each.spans()])

    def _try_send(self, spans: list[Span]) -> None:
        try:
            self._send(json.dumps(export_request(spans, version=self._version)).encode())
        except (OSError, http.client.HTTPException) as error:
            self._warn(f"no spans reach {self._url} ({error})")
        else:
            self._in_trouble = False

    def _warn(self, trouble: str) -> None:
        """Once, until a batch arrives again."""
        if not self._in_trouble:
            self._in_trouble = True
            log.warning("%s; they are dropped until it is better", trouble)

    def _send(self, body: bytes) -> None:
        parts = urlsplit(self._url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
        try:
            connection.request("POST", parts._replace(scheme="", netloc="").geturl(), body, self._headers)
            status = connection.getresponse().status
        finally:
            connection.close()
        if status >= 300:
            raise OSError(f"it answers with status {status}")


def open_tracer(environment: Mapping[str, str], *, model_name: str, version: str) -> Tracer | None:
    """For the collector that OpenTelemetry's variables name, if any. Raises OptionError for a bad URL."""
    url = environment.get(URL_VARIABLE)
    if not url:
        return None
    pairs = (pair.partition("=") for pair in environment.get(HEADERS_VARIABLE, "").split(",") if "=" in pair)
    headers = {name.strip(): value.strip() for name, _, value in pairs}
    return Tracer(url, model_name=model_name, version=version, headers=headers)


def _ignore(_: Ending) -> None:
    pass


def _traceparent(context: str | None) -> str:
    try:
        found: Any = json.loads(context or "{}").get("traceparent", "")
    except (ValueError, AttributeError):
        return ""
    return found if isinstance(found, str) else ""
