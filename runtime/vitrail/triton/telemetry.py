"""What a model's process tells about itself: its metrics, the spans of its requests, its pulse."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from vitrail.manifest import Manifest
from vitrail.metrics import Observer, Series, Watch
from vitrail.triton.metering import INTERVAL_S, Read, open_meter
from vitrail.triton.pulse import keep_pulse
from vitrail.triton.tracing import open_tracer


class Telemetry:
    """From a model's `initialize` to its `finalize`.

    `backend` is triton_python_backend_utils; `read` tells the present values of `series` (see metering), `progress`
    what the model is at (see pulse). metered_s: between two publications; None for a model that calls `publish`.
    """

    def __init__(
        self,
        backend: Any,
        model: str,
        manifest: Manifest,
        *,
        series: Iterable[Series] = (),
        read: Read = dict,
        metered_s: float | None = INTERVAL_S,
        progress: Callable[[], int | None],
    ) -> None:
        self._meter = open_meter(
            backend,
            series,
            model_name=manifest.name,
            read=read,
            environment=os.environ,
            interval_s=metered_s,
        )
        self.publish = self._meter.publish
        self._tracer = open_tracer(os.environ, model_name=manifest.name, version=manifest.vitrail)
        self._end_pulse = keep_pulse(os.environ, model, progress)

    @property
    def observer(self) -> Observer:
        return self._meter

    def watch(self, request: Any) -> Watch:
        """What is to be told a request's events."""
        if self._tracer is None:
            return Watch(self._meter)
        context = request.trace().get_context()
        return Watch(self._meter, on_end=self._tracer.ending(context, request.request_id()))

    def close(self) -> None:
        self._end_pulse()
        if self._tracer is not None:
            self._tracer.close()
        self._meter.close()
