"""What the decoder is asked: a request, and the checks it must pass before it may wait."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vitrail.core import GenerateOptions, Text
from vitrail.errors import InvalidInput, PromptTooLong
from vitrail.splice import check_image_embeds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vitrail.core import Float, ImageReport, Int32, Segment

DEFAULT_MAX_TOKENS = 1024
# A token of a real text is 3 to 5 bytes long.
MAX_BYTES_PER_TOKEN = 32
_MORE_CONTEXT = "or give more context (context_tokens; --context on the command line)"


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A question for the decoder.

    token_ids int32 [P]; image_embeds floating [tiles, tokens_per_tile, d], one row for each image token of the
    prompt, in order; reused_tiles of them came from a cache, for its report. preprocess_ms and vision_ms, waiting
    for vision included, were spent before it was submitted: they count in its report and against its deadline. `cancelled` is asked before every step whether the asker is gone.
    """

    id: str
    token_ids: Int32
    image_embeds: Float | None = None
    options: GenerateOptions = field(default_factory=GenerateOptions)
    images: tuple[ImageReport, ...] = ()
    preprocess_ms: float = 0.0
    vision_ms: float = 0.0
    reused_tiles: int = 0
    cancelled: Callable[[], bool] | None = None

    @property
    def spent_ms(self) -> float:
        """Before it was submitted."""
        return self.preprocess_ms + self.vision_ms


def answer_limit(prompt_tokens: int, max_tokens: int | None, *, capacity: int) -> int:
    """The most tokens an answer may have: max_tokens, or what a slot of `capacity` leaves, at most 1024.

    Raises PromptTooLong when prompt and answer exceed capacity - 1 tokens (a slot keeps one place free).
    """
    context_tokens = capacity - 1
    require_room("the prompt has", prompt_tokens, max_tokens, context_tokens=context_tokens)
    return min(DEFAULT_MAX_TOKENS, context_tokens - prompt_tokens) if max_tokens is None else max_tokens


def require_room(subject: str, tokens: int, max_tokens: int | None, *, context_tokens: int) -> None:
    """Raise PromptTooLong where these tokens of a prompt and its answer exceed context_tokens.

    subject: what is too long, and its verb.
    """
    wanted = 1 if max_tokens is None else max_tokens
    if tokens + wanted > context_tokens:
        asked = "" if max_tokens is None else f" and max_tokens is {max_tokens}"
        raise PromptTooLong(
            f"{subject} {tokens} tokens{asked}, but prompt and answer together have room for {context_tokens}; "
            f"shorten the text, lower max_tiles or max_tokens, {_MORE_CONTEXT}"
        )


def require_text_room(segments: Iterable[Segment], *, context_tokens: int) -> None:
    """Raise PromptTooLong for a text so long that it exceeds context_tokens whatever its tokens are.

    Asked before they are counted, which takes seconds for megabytes.
    """
    size = sum(len(segment.text.encode()) for segment in segments if isinstance(segment, Text))
    limit = MAX_BYTES_PER_TOKEN * context_tokens
    if size > limit:
        raise PromptTooLong(
            f"the prompt's text has {size} bytes, but prompt and answer together have room for {context_tokens} tokens, "
            f"at most {limit} bytes; shorten the text, {_MORE_CONTEXT}"
        )


def check_request(request: Request, *, image_context_id: int, width: int) -> None:
    """Raise InvalidInput for prompt ids, image embeds or times that this model cannot take."""
    ids, embeds = request.token_ids, request.image_embeds
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or ids.size == 0 or ids.min() < 0:
        raise InvalidInput(
            f"token ids are {ids.dtype} {list(ids.shape)}; a prompt is int32 [n], n >= 1, none negative"
        )
    for name, milliseconds in (("preprocess_ms", request.preprocess_ms), ("vision_ms", request.vision_ms)):
        if not (math.isfinite(milliseconds) and milliseconds >= 0):
            raise InvalidInput(f"{name} is {milliseconds}; it must be a number of milliseconds, at least 0")
    if embeds is None:
        embeds = np.empty((0, width), np.float32)
    if embeds.dtype.kind != "f":
        raise InvalidInput(f"image embeds are {embeds.dtype}; send float32 or float16")
    check_image_embeds(int(np.count_nonzero(ids == image_context_id)), embeds, width=width)
    if not np.isfinite(embeds).all():
        raise InvalidInput("image embeds hold NaN or infinity; send the projector's output unchanged")
