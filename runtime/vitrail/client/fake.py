"""A server that speaks Triton's gRPC and answers by script, for tests of clients."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING, Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as pb_grpc

from vitrail.client.exchange import FINAL, encode_bytes
from vitrail.client.wire import (
    ABORT,
    CONTRACT_PARAMETER,
    DELTA,
    OPTIONS,
    PROMPT,
    Contract,
    contract_to_json,
    delta_to_json,
)
from vitrail.core import Delta, Report
from vitrail.manifest import PromptContract

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

CONTRACT = contract_to_json(
    Contract(
        name="tiny",
        prompt=PromptContract(template="internlm2-chat"),
        tile_size=28,
        tokens_per_tile=4,
        context_tokens=512,
        slots=2,
        queue_limit=4,
        max_request_tiles=20,
    )
)
END = Delta(finish_reason="stop", report=Report(prompt_tokens=5, completion_tokens=2))
ANSWER = (Delta(text="Hello", token_ids=(1,)), Delta(text=" there", token_ids=(2,)), END)


class FakeServer(pb_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Gives the n-th request the n-th of `answers`, later ones the last. All that was asked is kept.

    An answer is a sequence of deltas, error texts, ready messages, and events to wait for.
    """

    def __init__(self, *answers: Any, contract: str | None = CONTRACT, port: int = 0) -> None:
        self.answers, self.contract, self.port = answers or (ANSWER,), contract, port
        self.requests: list[pb.ModelInferRequest] = []
        self.aborted: list[str] = []
        self.calls: list[Any] = []
        self.headers: dict[str, str] = {}

    def __enter__(self) -> Self:
        self.server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", -1)])
        pb_grpc.add_GRPCInferenceServiceServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop(0).wait()

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ModelConfig(self, request: Any, context: Any) -> pb.ModelConfigResponse:  # noqa: N802
        self.headers = dict(context.invocation_metadata())
        self.calls.append(request)
        response = pb.ModelConfigResponse()
        if self.contract is not None:
            response.config.parameters[CONTRACT_PARAMETER].string_value = self.contract
        return response

    def ModelStreamInfer(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:  # noqa: ARG002, N802
        for request in requests:
            if ABORT in (asked := inputs(request)):
                self.aborted.append(asked[ABORT])
                yield message(final=True)
            else:
                self.requests.append(request)
                yield from self._answer(self.answers[min(len(self.requests), len(self.answers)) - 1])

    def _answer(self, answer: Any) -> Iterator[pb.ModelStreamInferResponse]:
        for item in answer:
            if isinstance(item, Event):
                item.wait(60)
            elif isinstance(item, Delta):
                yield message(item, final=item.report is not None)
            else:
                yield message(error=item) if isinstance(item, str) else item


def message(
    delta: Delta | None = None, *, final: bool = False, error: str = ""
) -> pb.ModelStreamInferResponse:
    """A message with a delta, with nothing, or with an error."""
    response = pb.ModelStreamInferResponse(error_message=error)
    response.infer_response.parameters[FINAL].bool_param = final
    if delta is not None:
        response.infer_response.outputs.add(name=DELTA, datatype="BYTES", shape=[1])
        response.infer_response.raw_output_contents.append(encode_bytes(delta_to_json(delta)))
    return response


def inputs(request: pb.ModelInferRequest) -> dict[str, Any]:
    """A request's inputs by name: JSON parsed, other text decoded, tiles as bytes; none that lies in shared memory."""
    sent = [tensor for tensor in request.inputs if not tensor.parameters]
    return {
        tensor.name: _value(tensor, raw) for tensor, raw in zip(sent, request.raw_input_contents, strict=True)
    }


def _value(tensor: Any, raw: bytes) -> Any:
    if tensor.datatype != "BYTES":
        return raw
    text = raw[4:].decode()
    return json.loads(text) if tensor.name in {PROMPT, OPTIONS} else text
