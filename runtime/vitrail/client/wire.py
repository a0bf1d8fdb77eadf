"""What travels between a client and the decoder, built and parsed in one place. Pure: no I/O, no gRPC.

A server that parses what a client sent raises InvalidInput, a client that parses what a server sent raises
ServerError. Unknown fields in the server's JSON are ignored (a newer server may say more), unknown fields in the
client's are refused (they would be silently lost).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_json

from vitrail.core import Control, Delta, GenerateOptions, ImageReport, Prompt, Segment, Text, Visual
from vitrail.errors import InvalidInput, ServerError, VitrailError, error_from_code
from vitrail.manifest import Manifest, PromptContract
from vitrail.options import options_to_json as options_by_name
from vitrail.templates import GROUNDING_MARKS

# Models.
VISION_ENCODER = "vision_encoder"
PROJECTOR = "projector"
DECODER = "decoder"
ENSEMBLE = "internvl"

# Tensors between the models.
TILES = "tiles"
FEATURES = "features"
IMAGE_EMBEDS = "image_embeds"

# The decoder's other inputs; the ensemble passes them through.
PROMPT = "prompt"
TEXT_INPUT = "text_input"
NUM_TILES = "num_tiles"
OPTIONS = "options"
MAX_TOKENS = "max_tokens"
TEMPERATURE = "temperature"
TOP_P = "top_p"
TOP_K = "top_k"
ABORT = "abort"
ANNOUNCE = "announce"

# The decoder's outputs.
TEXT_OUTPUT = "text_output"
DELTA = "delta"

# Parameters in config.pbtxt.
CONTRACT_PARAMETER = "vitrail_contract"
ARTIFACTS_PARAMETER = "artifacts"

CONTRACT_VERSION = 1
MAX_PROMPT_BYTES = 4 << 20
MAX_OPTIONS_BYTES = 64 << 10


class Contract(BaseModel):
    """All that a client needs to know about a server: how to cut pictures, write prompts, and the limits.

    context_tokens is what one request may use, prompt and answer together; max_request_tiles bounds the tiles of
    all its pictures, ensemble_tiles those of one request on the ensemble route where that takes fewer; look_tiles:
    pictures of more are better taken to the decoder, which hands them on so many tiles at a time. special: every special
    token's string, the grounding marks among them. announces: whether the decoder wants to know of a request on the
    ensemble route when it sets out.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    version: int = CONTRACT_VERSION
    name: str
    prompt: PromptContract
    tile_size: int = Field(gt=0)
    tokens_per_tile: int = Field(gt=0)
    context_tokens: int = Field(gt=0)
    slots: int = Field(gt=0)
    queue_limit: int = Field(ge=0)
    max_request_tiles: int = Field(gt=0)
    ensemble_tiles: int | None = Field(default=None, gt=0)
    look_tiles: int | None = Field(default=None, gt=0)
    special: tuple[str, ...] = ()
    vision_precision: str = ""
    decoder_precision: str = ""
    server: str = ""
    announces: bool = False

    @property
    def grounding_marks(self) -> tuple[str, ...]:
        return tuple(mark for mark in GROUNDING_MARKS if mark in self.special)


def contract_from_manifest(
    manifest: Manifest,
    *,
    slots: int,
    context_tokens: int,
    queue_limit: int,
    max_request_tiles: int,
    ensemble_tiles: int | None = None,
    look_tiles: int | None = None,
) -> Contract:
    """The contract of a server that runs these artifacts with these limits."""
    return Contract(
        name=manifest.name,
        prompt=manifest.prompt,
        tile_size=manifest.vision.tile_size,
        tokens_per_tile=manifest.vision.tokens_per_tile,
        context_tokens=context_tokens,
        slots=slots,
        queue_limit=queue_limit,
        max_request_tiles=max_request_tiles,
        ensemble_tiles=ensemble_tiles,
        look_tiles=look_tiles,
        special=tuple(manifest.tokenizer.special),
        vision_precision=manifest.vision.precision,
        decoder_precision=manifest.decoder.precision,
        server=manifest.vitrail,
        announces=True,
    )


def contract_to_json(contract: Contract) -> str:
    return contract.model_dump_json()


def contract_from_json(text: str) -> Contract:
    """Raises ServerError for anything but a contract of CONTRACT_VERSION."""
    version = _object(text, what=f"the server's {CONTRACT_PARAMETER}", kind=ServerError).get("version")
    if version != CONTRACT_VERSION:
        raise ServerError(
            f"the server speaks contract version {version!r}, this vitrail {CONTRACT_VERSION}; "
            "install the same vitrail version on both sides"
        )
    try:
        return Contract.model_validate_json(text)
    except ValidationError as error:
        raise ServerError(f"the server's {CONTRACT_PARAMETER} is malformed: {_first(error)}") from error


@dataclass(frozen=True, slots=True)
class WirePrompt:
    """A prompt as it arrives at the decoder: its tiles come as embeddings or as a tensor of their own."""

    segments: tuple[Segment, ...]
    images: tuple[ImageReport, ...] = ()
    preprocess_ms: float = 0.0

    @property
    def tiles(self) -> int:
        return sum(segment.tiles for segment in self.segments if isinstance(segment, Visual))


class _PromptFields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    segments: list[dict[str, str | int]] = Field(min_length=1)
    images: tuple[ImageReport, ...] = ()
    preprocess_ms: float = Field(default=0.0, ge=0, allow_inf_nan=False)


def prompt_to_json(prompt: Prompt, *, preprocess_ms: float = 0.0) -> str:
    """The decoder's `prompt` input. Raises InvalidInput for text that is not valid Unicode (lone surrogates)."""
    record = {
        "segments": [_segment_fields(segment) for segment in prompt.segments],
        "images": prompt.images,
        "preprocess_ms": round(preprocess_ms, 3),
    }
    return _client_json(record, what="the prompt is")


def prompt_from_json(text: str | bytes) -> WirePrompt:
    """Raises InvalidInput for anything but a well-formed prompt whose pictures agree with its visual segments."""
    _bounded(text, what=PROMPT, limit_bytes=MAX_PROMPT_BYTES)
    try:
        record = _PromptFields.model_validate_json(text)
    except ValidationError as error:
        raise InvalidInput(f"input '{PROMPT}' is malformed: {_first(error)}") from error
    segments = tuple(_segment(index, value) for index, value in enumerate(record.segments))
    tiles = [segment.tiles for segment in segments if isinstance(segment, Visual)]
    described = [image.tiles for image in record.images]
    if described and described != tiles:
        raise InvalidInput(
            f"input '{PROMPT}' describes pictures of {described} tiles but has visual segments of {tiles}; "
            "give one entry of 'images' for each visual segment, or none"
        )
    return WirePrompt(segments=segments, images=record.images, preprocess_ms=record.preprocess_ms)


def _segment_fields(segment: Segment) -> dict[str, str | int]:
    match segment:
        case Text(text):
            return {"text": text}
        case Control(token):
            return {"control": token}
        case Visual(tiles):
            return {"visual": tiles}


def _segment(index: int, value: dict[str, str | int]) -> Segment:
    match value:
        case {"text": str(text), **rest} if not rest:
            return Text(text)
        case {"control": str(token), **rest} if not rest:
            return Control(token)
        case {"visual": int(tiles), **rest} if not rest and tiles > 0:
            return Visual(tiles)
    raise InvalidInput(
        f"input '{PROMPT}': segments[{index}] is {json.dumps(value)[:80]}; "
        'give {"text": string}, {"control": string} or {"visual": tiles, at least 1}'
    )


def options_to_json(options: GenerateOptions) -> str:
    """The decoder's `options` input: the fields that differ from their defaults. Raises InvalidInput as above."""
    return _client_json(options_by_name(options), what="the options are")


def options_from_json(text: str | bytes) -> dict[str, Any]:
    """The options by name, for `vitrail.options.options_from_json` to check. Raises InvalidInput for no JSON object."""
    _bounded(text, what=OPTIONS, limit_bytes=MAX_OPTIONS_BYTES)
    return _object(text, what=f"input '{OPTIONS}'", kind=InvalidInput)


def delta_to_json(delta: Delta) -> str:
    """The decoder's `delta` output; fields at their defaults are left out."""
    values = {item.name: getattr(delta, item.name) for item in fields(delta)}
    changed = {name: value for name, value in values.items() if value != getattr(_NOTHING, name)}
    return to_json(changed, inf_nan_mode="constants").decode()


def delta_from_json(text: str | bytes) -> Delta:
    """Raises ServerError for anything but a delta."""
    try:
        delta = _DELTA.validate_json(text, strict=True)
    except ValidationError as error:
        raise ServerError(f"the server sent a malformed delta: {_first(error)}; {_VERSION_CURE}") from error
    if delta.index < 0:
        raise ServerError(f"the server sent a delta of answer {delta.index}; {_VERSION_CURE}")
    return delta


def error_to_text(error: VitrailError) -> str:
    """`[code] text`, the message of every error that the decoder sends."""
    return f"[{error.code}] {error}"


def error_from_text(message: str) -> VitrailError:
    """The error that a server's message stands for; ServerError for a message that tells no known one."""
    return known_error(message) or ServerError(f"the server answered: {message[:500]}")


def known_error(message: str) -> VitrailError | None:
    """The error of a message with one of our codes, or with words that Triton is known to use.

    Triton puts its own words before a message that passes through an ensemble, so the code may stand anywhere.
    """
    for found in _CODE.finditer(message):
        error = error_from_code(found["code"], found["text"])
        if error.code == found["code"]:
            return error
    for words, code, text in _TRITON_MESSAGES:
        if words in message:
            return error_from_code(code, f"{text} (server: {message[:300]})")
    return None


_NOTHING = Delta()
_DELTA: TypeAdapter[Delta] = TypeAdapter(Delta)
_JSON_OBJECT: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])
_CODE = re.compile(r"\[(?P<code>[a-z_]+)\] (?P<text>.*)", re.DOTALL)
_VERSION_CURE = "install the same vitrail version on both sides"
# Triton compares every tensor with config.pbtxt before a model sees it.
_TENSOR_WORDS = (
    "unexpected shape for input",
    "input byte size mismatch for input",
    "All input dimensions should be specified for input",
    "' data-type is '",
    "incomplete string",
    "unexpected inference input",
)
_WRONG_TENSOR = (
    "the request has a tensor that the model does not take; give it the name, type and shape that is expected"
)
_TRITON_MESSAGES = (
    ("Exceeds maximum queue size", "busy", "the server's queue is full; try again later"),
    ("Request timeout expired", "deadline", "the request waited too long in the server's queue"),
    (
        "is not healthy",
        "server",
        "a model's process on the server died; it is being restarted, try again in a few seconds",
    ),
    (
        "unknown model",
        "server",
        "the server does not serve this model, or not yet; see what `vitrail serve` says of it",
    ),
    (
        "batch-size must be <=",
        "invalid_input",
        "the request has more tiles than the server takes; lower max_tiles or send fewer pictures",
    ),
    *((words, "invalid_input", _WRONG_TENSOR) for words in _TENSOR_WORDS),
)


def _client_json(value: dict[str, Any], *, what: str) -> str:
    try:
        return to_json(value).decode()
    except (PydanticSerializationError, UnicodeEncodeError) as error:
        raise InvalidInput(
            f"{what} not valid Unicode text ({error}); give text that UTF-8 can hold"
        ) from error


def _bounded(text: str | bytes, *, what: str, limit_bytes: int) -> None:
    if len(text) > limit_bytes:
        raise InvalidInput(f"input '{what}' has {len(text)} bytes, the limit is {limit_bytes}; shorten it")


def _object(text: str | bytes, *, what: str, kind: type[VitrailError]) -> dict[str, Any]:
    try:
        return _JSON_OBJECT.validate_json(text)
    except ValidationError as error:
        raise kind(f"{what} is no JSON object: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    """The first thing wrong, by its path; never the whole input."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"field '{where}': {first['msg']}" if where else str(first["msg"])
