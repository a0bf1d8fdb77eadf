"""One request's life on the wire, without I/O: what to send, what an answer means, when it is late."""

from __future__ import annotations

import struct
import time
import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from vitrail.client.wire import (
    ABORT,
    ANNOUNCE,
    CONTRACT_PARAMETER,
    DECODER,
    DELTA,
    OPTIONS,
    PROMPT,
    TILES,
    Contract,
    contract_from_json,
    delta_from_json,
    error_from_text,
    options_to_json,
)
from vitrail.core import Delta, GenerateOptions
from vitrail.errors import DeadlineExceeded, ServerError, VitrailError

if TYPE_CHECKING:
    from vitrail.client.failure import Backoff
    from vitrail.client.shm import Region
    from vitrail.core import Uint8

# The server ends a late request itself, with what it has; the client waits this much longer for that.
DEADLINE_MARGIN_S = 5.0
# Microseconds that the request may wait in a Triton queue; only the vision models have one.
TIMEOUT = "timeout"
FINAL = "triton_final_response"
WANT_FINAL = "triton_enable_empty_final_response"


@dataclass(slots=True, kw_only=True)
class Exchange:
    """A request and its answer so far. Each try has its own request id; `done` once the server's last word is in."""

    model: str
    prompt_json: str
    tiles: Uint8
    options: GenerateOptions
    deadline_s: float
    idle_timeout_s: float
    backoff: Backoff
    announces: bool = False
    region: Region | None = None
    request_id: str = ""
    answering: bool = False
    done: bool = False
    reported: bool = False
    started_s: float = field(default_factory=time.monotonic)

    @property
    def remaining_s(self) -> float:
        """Seconds until the client itself gives up, at least a moment: the server is given the shorter deadline."""
        return max(self.started_s + self.deadline_s + DEADLINE_MARGIN_S - time.monotonic(), 0.001)

    @property
    def wait_s(self) -> float:
        """Seconds to wait for the next message. Before the first the request may be queued: no idle limit then."""
        return min(self.idle_timeout_s, self.remaining_s) if self.answering else self.remaining_s

    def next_requests(self) -> tuple[bytes, ...]:
        """What the next try sends: the request and, where it is wanted, word of it to the decoder, which has no answer.

        In this order, so that the request does not wait for it: vision takes longer than a word. Copies the tiles.
        """
        request = self._next_request()
        return (request, announcement(self.request_id)) if self.announces else (request,)

    def _next_request(self) -> bytes:
        self.request_id, self.done = uuid.uuid4().hex, False
        # Rounding must not take it beyond what was asked: a week is the limit here and there.
        deadline_s = min(max(self.remaining_s - DEADLINE_MARGIN_S, 0.001), self.deadline_s)
        options = replace(self.options, deadline_s=deadline_s)
        request = _request(self.model, self.request_id)
        request.parameters[TIMEOUT].int64_param = int(deadline_s * 1e6)
        add_bytes(request, PROMPT, self.prompt_json)
        add_bytes(request, OPTIONS, options_to_json(options))
        return with_tiles(request, self.tiles, region=self.region)

    def receive(self, message: pb.ModelStreamInferResponse | None) -> Delta | None:
        """What a message adds to the answer; None is the end of the stream. Raises what the server reports."""
        if message is None:
            raise ServerError("the server ended the answer before it was complete; ask again")
        if message.error_message:
            self.done = True
            raise error_from_text(message.error_message)
        response = message.infer_response
        self.done = response.parameters[FINAL].bool_param if FINAL in response.parameters else False
        text = read_bytes(response, DELTA)
        delta = None if text is None else delta_from_json(text)
        self.answering = self.answering or delta is not None
        self.reported = self.reported or (delta is not None and delta.report is not None)
        if self.done and not self.reported:
            raise ServerError(
                "the server ended the answer without its report; install the same vitrail version on both sides"
            )
        return delta

    def pause_s(self, error: VitrailError) -> float:
        """Seconds to wait before the next try; raises `error` once the answer has begun or tries are used up."""
        if self.answering:
            raise error
        return self.backoff.pause_s(error)

    def overdue(self) -> VitrailError:
        """The error for a message that did not come within `wait_s`."""
        if time.monotonic() - self.started_s >= self.deadline_s:
            return DeadlineExceeded(
                f"no complete answer within the deadline of {self.deadline_s:g} s; raise deadline_s or lower max_tokens"
            )
        return ServerError(
            f"the server sent nothing for {self.idle_timeout_s:g} s in the middle of an answer; "
            "ask again, or raise idle_timeout_s for a slow server"
        )


def abort_request(request_id: str) -> bytes:
    """Tells the decoder to stop `request_id`, whichever way that reached it."""
    request = _request(DECODER, uuid.uuid4().hex)
    add_bytes(request, ABORT, request_id)
    return bytes(request.SerializeToString())


def announcement(request_id: str) -> bytes:
    """Tells the decoder that `request_id` has set out: from now on its deadline counts."""
    request = pb.ModelInferRequest(model_name=DECODER, id=uuid.uuid4().hex)
    add_bytes(request, ANNOUNCE, request_id)
    return bytes(request.SerializeToString())


def config_request() -> pb.ModelConfigRequest:
    return pb.ModelConfigRequest(name=DECODER)


def contract_from_config(response: pb.ModelConfigResponse) -> Contract:
    """Raises ServerError where the decoder's config has no contract that this vitrail understands."""
    parameters = response.config.parameters
    if CONTRACT_PARAMETER not in parameters:
        raise ServerError(
            f"the server's model '{DECODER}' has no parameter '{CONTRACT_PARAMETER}': it was not started by "
            "`vitrail serve`, or by an old one; start it with this version"
        )
    return contract_from_json(parameters[CONTRACT_PARAMETER].string_value)


def add_bytes(request: pb.ModelInferRequest, name: str, value: str) -> None:
    """A BYTES [1] input."""
    request.inputs.add(name=name, datatype="BYTES", shape=[1])
    request.raw_input_contents.append(encode_bytes(value))


def with_tiles(request: pb.ModelInferRequest, tiles: Uint8, *, region: Region | None) -> bytes:
    """A request as it is sent, with a last input UINT8 [n, 3, S, S] where there are tiles: in the message, or in a
    registered shared memory region.

    They are copied once: protobuf would do so three times, which takes longer than to cut a picture.
    """
    if not len(tiles):
        return bytes(request.SerializeToString())
    tensor = request.inputs.add(name=TILES, datatype="UINT8", shape=tiles.shape)
    if region is None:
        pixels = np.ascontiguousarray(tiles).data
        return b"".join([request.SerializeToString(), _RAW_INPUT, _varint(tiles.nbytes), pixels])
    tensor.parameters["shared_memory_region"].string_param = region.name
    tensor.parameters["shared_memory_byte_size"].int64_param = tiles.nbytes
    return bytes(request.SerializeToString())


def read_bytes(response: pb.ModelInferResponse, name: str) -> bytes | None:
    """A BYTES [1] output; None where the message has no such output. Raises ServerError for a malformed one."""
    names = [output.name for output in response.outputs]
    if name not in names:
        return None
    index = names.index(name)
    raw = response.raw_output_contents[index] if index < len(response.raw_output_contents) else b""
    if len(raw) < 4 or struct.unpack_from("<I", raw)[0] != len(raw) - 4:
        raise ServerError(
            f"the server sent a malformed output '{name}' of {len(raw)} bytes; see the server's log"
        )
    return bytes(raw[4:])


def encode_bytes(text: str) -> bytes:
    """One element of a BYTES tensor: its length as four bytes, little-endian, then UTF-8."""
    data = text.encode()
    return struct.pack("<I", len(data)) + data


def _varint(number: int) -> bytes:
    """protobuf's form of a number: seven bits a byte, the lowest first, with the eighth set where more follow."""
    *groups, last = (number >> shift & 0x7F for shift in range(0, max(number.bit_length(), 1), 7))
    return bytes([*(group | 0x80 for group in groups), last])


# What stands before each of a message's raw inputs, and its length: the field's number, and that bytes follow.
_RAW_INPUT = _varint(pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | 2)


def _request(model: str, request_id: str) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, id=request_id)
    request.parameters[WANT_FINAL].bool_param = True
    return request
