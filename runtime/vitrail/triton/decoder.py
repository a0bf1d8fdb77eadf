"""Triton model `decoder`: questions in, streamed deltas out; the continuous batching is `vitrail.decoder`'s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from vitrail.client.wire import (
    DECODER,
    DELTA,
    FEATURES,
    PROJECTOR,
    TEXT_OUTPUT,
    TILES,
    VISION_ENCODER,
    delta_to_json,
    error_from_text,
)
from vitrail.core import Delta, Uint8
from vitrail.decoder import Decoder, Request
from vitrail.errors import VitrailError
from vitrail.look import Seen
from vitrail.metrics import DECODER_SERIES, Series, decoder_readings
from vitrail.session.open import open_decoder
from vitrail.tokenizer import Tokenizer, load_tokenizer
from vitrail.triton.answering import Answering
from vitrail.triton.backend import Served, loading, read_served, triton_error
from vitrail.triton.device_tensor import to_host
from vitrail.triton.looking import Looking
from vitrail.triton.outbox import Event, Outbox
from vitrail.triton.question import TILES_REUSED, Tensors
from vitrail.triton.repository import cpu_look
from vitrail.triton.telemetry import Telemetry
from vitrail.triton.vision_models import VisionModels

_RUNS_PER_LOOK = 4


class TritonPythonModel:
    """Inputs and outputs: see config.pbtxt. `execute` only reads and submits."""

    def initialize(self, args: Mapping[str, str]) -> None:
        with loading(args):
            served = read_served(args)
            tokenizer = load_tokenizer(served.artifacts, served.manifest.tokenizer)
            self._decoder = _decoder(served, tokenizer)
            self._outbox = Outbox(_deliver)
            most = cpu_look(served.manifest, served.settings)
            looking = Looking(
                self._decoder,
                see=partial(_see, vision=served.vision),
                tiles_per_look=min(
                    most or _RUNS_PER_LOOK * served.settings.tiles_per_run, served.vision.batch_tiles
                ),
            )
            self._telemetry = _telemetry(served, self._decoder, looking)
            self._answering = Answering(
                self._decoder,
                tokenizer=tokenizer,
                manifest=served.manifest,
                looking=looking,
                observer=self._telemetry.observer,
            )
            self._decoder.start()

    def execute(self, requests: Sequence[Any]) -> None:
        for request in requests:
            timeout_us = request.timeout()
            self._answering.accept(
                partial(_tensors, request),
                self._outbox.open(request.get_response_sender(), self._telemetry.watch(request)),
                request_id=request.request_id(),
                timeout_s=timeout_us / 1e6 if timeout_us else None,
            )

    def finalize(self) -> None:
        self._answering.close()
        self._decoder.close()
        self._outbox.close()
        self._telemetry.close()


def _decoder(served: Served, tokenizer: Tokenizer) -> Decoder:
    manifest, settings = served.manifest, served.settings
    session = open_decoder(
        served.artifacts,
        manifest,
        settings.shares.decoder,
        slots=settings.decoder.slots,
        capacity=_capacity(served),
    )
    return Decoder(session, tokenizer, manifest.tokenizer, settings.decoder)


def _telemetry(served: Served, decoder: Decoder, looking: Looking) -> Telemetry:
    def read() -> Mapping[Series, float]:
        return decoder_readings(
            decoder.statistics,
            at_vision=looking.count,
            kv_bytes_per_token=served.manifest.decoder.kv_bytes_per_token,
            capacity=_capacity(served),
        )

    def progress() -> int | None:
        now = decoder.statistics
        return now.turns if now.live_requests else None

    return Telemetry(pb_utils, DECODER, served.manifest, series=DECODER_SERIES, read=read, progress=progress)


def _capacity(served: Served) -> int:
    return served.settings.decoder.capacity(served.manifest.decoder.context_tokens)


def _tensors(request: Any) -> Tensors:
    """Copies: the request's memory goes back to Triton before the answer is there."""
    return {tensor.name(): to_host(tensor) for tensor in request.inputs()}


def _deliver(sender: Any, event: Event, final: bool) -> None:  # noqa: FBT001  (a callback)
    """Send an event; `final` closes the request's stream."""
    flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
    if isinstance(event, Delta):
        sender.send(pb_utils.InferenceResponse(_outputs(event)), flags=flags)
    elif isinstance(event, VitrailError):
        sender.send(pb_utils.InferenceResponse(error=triton_error(event)), flags=flags)
    else:
        sender.send(flags=flags)


def _outputs(delta: Delta) -> list[Any]:
    values = {TEXT_OUTPUT: delta.text, DELTA: delta_to_json(delta)}
    return [pb_utils.Tensor(name, np.array([text.encode()], np.object_)) for name, text in values.items()]


def _see(tiles: Uint8, request: Request, remaining_s: float, *, vision: VisionModels) -> Seen:
    """By way of the vision models, in whose queues it waits no longer than `remaining_s`. Raises what they answer."""
    infer = partial(_infer, request_id=request.id, timeout_us=max(1, int(1e6 * remaining_s)))
    wanted = [FEATURES, TILES_REUSED] if vision.reports else [FEATURES]
    features, *reused = infer(VISION_ENCODER, pb_utils.Tensor(TILES, tiles), outputs=wanted)
    (embeds,) = infer(PROJECTOR, features, outputs=[vision.embeds])
    return Seen(to_host(embeds), sum(int(np.count_nonzero(to_host(each))) for each in reused))


def _infer(model: str, tensor: Any, *, outputs: Sequence[str], request_id: str, timeout_us: int) -> list[Any]:
    request = pb_utils.InferenceRequest(
        model_name=model,
        inputs=[tensor],
        requested_output_names=list(outputs),
        request_id=request_id,
        timeout=timeout_us,
    )
    response = request.exec()
    if response.has_error():
        raise error_from_text(response.error().message())
    return [pb_utils.get_output_tensor_by_name(response, output) for output in outputs]
