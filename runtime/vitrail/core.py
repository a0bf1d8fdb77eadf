"""The vocabulary: frozen records that travel between the modules. No behaviour beyond derived properties."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Uint8: TypeAlias = npt.NDArray[np.uint8]
Int32: TypeAlias = npt.NDArray[np.int32]
Int64: TypeAlias = npt.NDArray[np.int64]
Float: TypeAlias = npt.NDArray[np.floating[Any]]

FinishReason: TypeAlias = Literal["stop", "length", "cancelled", "deadline"]


class Grid(NamedTuple):
    """Tiles across and down that a picture is cut into, without the thumbnail."""

    columns: int
    rows: int


@dataclass(frozen=True, slots=True)
class ImageReport:
    """What became of one picture: size in pixels, grid, tiles (thumbnail included) and visual tokens."""

    width: int
    height: int
    grid: Grid
    tiles: int
    visual_tokens: int


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of a prompt that is always plain text, whatever it spells."""

    text: str


@dataclass(frozen=True, slots=True)
class Control:
    """A piece of a prompt that is one special token, by its string."""

    token: str


@dataclass(frozen=True, slots=True)
class Visual:
    """A picture's place in a prompt: `<img>`, tiles x tokens_per_tile `<IMG_CONTEXT>`, `</img>`."""

    tiles: int


Segment: TypeAlias = "Text | Control | Visual"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question made ready: segments in order, every picture's tiles (uint8 [n, 3, S, S]) and its report."""

    segments: tuple[Segment, ...]
    tiles: Uint8
    images: tuple[ImageReport, ...]
    text: str
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """How pictures are tiled and the prompt is written.

    max_tiles 1..40 per picture and thumbnail (append the whole picture when it was cut): None for the checkpoint's
    own. system: None for the checkpoint's or template's own message, "" for an empty one. rotate: follow the EXIF
    orientation (the reference does not).
    """

    max_tiles: int | None = None
    thumbnail: bool | None = None
    system: str | None = None
    rotate: bool = False


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """How the answer is generated. temperature 0 is greedy. top_k 0, top_p 1 and min_p 0 are off.

    max_tokens: None for what the context leaves, at most 1024. logprobs: None for none, k >= 0 for each token's
    own and the k most likely. n answers, independent, seeds seed, seed + 1, …

    Where requests wait: priority 0 (first) to 9, and user, whose requests take fair turns with other users'.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    n: int = 1
    logprobs: int | None = None
    deadline_s: float | None = None
    keep_special_tokens: bool = False
    priority: int = 5
    user: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One generated token, its log-probability before any sampling option, and the most likely ones."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds of each phase of one request. ttft_ms counts from its arrival to the first token."""

    preprocess_ms: float = 0.0
    vision_ms: float = 0.0
    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    ttft_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """What a finished request used: tokens, pictures and time. It comes with a request's last delta.

    reused_tokens: how many of the prompt's tokens were in the KV cache already, for all answers together;
    reused_tiles: how many tiles' features were known.
    """

    prompt_tokens: int
    completion_tokens: int
    images: tuple[ImageReport, ...] = ()
    timings: Timings = field(default_factory=Timings)
    reused_tokens: int = 0
    reused_tiles: int = 0

    @property
    def visual_tokens(self) -> int:
        return sum(image.visual_tokens for image in self.images)


@dataclass(frozen=True, slots=True)
class Delta:
    """What a step added to answer `index`: text (maybe none yet), its tokens, and at the end the reason.

    The texts of an answer's deltas, joined, are its whole text. `report` comes with the last delta of a request.
    """

    index: int = 0
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    report: Report | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """One whole answer."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """The answers to one request and what they used."""

    choices: tuple[Choice, ...]
    report: Report

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def finish_reason(self) -> FinishReason:
        return self.choices[0].finish_reason

    @property
    def images(self) -> tuple[ImageReport, ...]:
        return self.report.images
