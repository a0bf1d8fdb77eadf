"""A request's tensors as the question that they ask, checked. Pure: what Triton's own checks let through ends here."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from vitrail.client import wire
from vitrail.core import Float, GenerateOptions, ImageReport, Segment, Uint8
from vitrail.errors import InvalidInput, OptionError
from vitrail.manifest import Manifest, VisionContract
from vitrail.options import options_from_json
from vitrail.prompt import question_segments

# Between the models of the ensemble only: unix seconds at which the vision encoder took each tile, float64 [n, 1].
VISION_STARTED = "vision_started"
# The same way: 1 for each tile whose features were known, uint8 [n, 1].
TILES_REUSED = "tiles_reused"

# The options that raw clients may give as tensors of their own, as genai-perf does.
SINGLE_OPTIONS = (wire.MAX_TOKENS, wire.TEMPERATURE, wire.TOP_P, wire.TOP_K)

Tensors: TypeAlias = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """What is asked. Pictures come as image_embeds [n, tokens_per_tile, d] or as tiles [n, 3, S, S], or not at all."""

    segments: tuple[Segment, ...]
    options: GenerateOptions
    images: tuple[ImageReport, ...] = ()
    image_embeds: Float | None = None
    tiles: Uint8 | None = None
    preprocess_ms: float = 0.0
    vision_ms: float = 0.0
    reused_tiles: int = 0


def read_abort(tensors: Tensors) -> str | None:
    """The id of the request to cancel; None where this is a question. Raises InvalidInput where it is both."""
    return _alone(tensors, wire.ABORT)


def read_announcement(tensors: Tensors) -> str | None:
    """The id of a request that has set out on the ensemble route; as above."""
    return _alone(tensors, wire.ANNOUNCE)


def read_question(tensors: Tensors, *, manifest: Manifest) -> Question:
    """Raises InvalidInput (OptionError) naming the input, its value, the limit and the cure."""
    vision = manifest.vision
    embeds, tiles = _image_embeds(tensors, manifest), _tiles(tensors, vision)
    if embeds is not None and tiles is not None:
        raise InvalidInput(f"both '{wire.IMAGE_EMBEDS}' and '{wire.TILES}' are given; give one of them")
    pictures = tiles if embeds is None else embeds
    count = 0 if pictures is None else len(pictures)
    prompt = _prompt(tensors, count, manifest=manifest)
    if prompt.tiles != count:
        raise InvalidInput(
            f"the prompt has places for {prompt.tiles} tiles, but {count} are given; send exactly the prompt's tiles"
        )
    return Question(
        segments=prompt.segments,
        options=_options(tensors),
        images=prompt.images,
        image_embeds=embeds,
        tiles=tiles,
        preprocess_ms=prompt.preprocess_ms,
        vision_ms=_vision_ms(tensors),
        reused_tiles=int(np.count_nonzero(tensors.get(TILES_REUSED, ()))),
    )


def check_tiles(tiles: Uint8, vision: VisionContract) -> None:
    """Raise InvalidInput unless tiles are uint8 [n, 3, S, S] of the model's tile size."""
    size = vision.tile_size
    if tiles.dtype != np.uint8 or tiles.ndim != 4 or tiles.shape[1:] != (3, size, size):
        raise InvalidInput(
            f"input '{wire.TILES}' is {tiles.dtype} {list(tiles.shape)}; this model takes uint8 [n, 3, {size}, {size}]: "
            f"cut pictures into tiles of {size} x {size} pixels"
        )


def check_features(features: Float, vision: VisionContract) -> None:
    """Raise InvalidInput unless features are [n, tokens_per_tile, feature_size]."""
    expected = (vision.tokens_per_tile, vision.feature_size)
    if features.ndim != 3 or features.shape[1:] != expected:
        raise InvalidInput(
            f"input '{wire.FEATURES}' is {list(features.shape)}; this model takes [n, {expected[0]}, {expected[1]}]: "
            "send the vision encoder's output unchanged"
        )


def _tiles(tensors: Tensors, vision: VisionContract) -> Uint8 | None:
    tiles = tensors.get(wire.TILES)
    if tiles is None or len(tiles) == 0:
        return None
    check_tiles(tiles, vision)
    return tiles


def _image_embeds(tensors: Tensors, manifest: Manifest) -> Float | None:
    embeds = tensors.get(wire.IMAGE_EMBEDS)
    if embeds is None or len(embeds) == 0:
        return None
    expected = (manifest.vision.tokens_per_tile, manifest.decoder.hidden_size)
    if embeds.ndim != 3 or embeds.shape[1:] != expected:
        raise InvalidInput(
            f"input '{wire.IMAGE_EMBEDS}' is {list(embeds.shape)}; this model takes [n, {expected[0]}, {expected[1]}]: "
            "send the projector's output unchanged"
        )
    return embeds


def _prompt(tensors: Tensors, tiles: int, *, manifest: Manifest) -> wire.WirePrompt:
    given = [name for name in (wire.PROMPT, wire.TEXT_INPUT) if name in tensors]
    if len(given) != 1:
        said = "neither is given" if not given else "both are given"
        raise InvalidInput(
            f"the question is in '{wire.PROMPT}' or in '{wire.TEXT_INPUT}', but {said}; give one"
        )
    if given == [wire.TEXT_INPUT]:
        question = _text(tensors, wire.TEXT_INPUT)
        counts = _num_tiles(tensors, tiles)
        return wire.WirePrompt(question_segments(question, counts, contract=manifest.prompt))
    if wire.NUM_TILES in tensors:
        raise InvalidInput(
            f"'{wire.NUM_TILES}' goes with '{wire.TEXT_INPUT}'; a '{wire.PROMPT}' has its own visual segments: leave it out"
        )
    return wire.prompt_from_json(_bytes(tensors, wire.PROMPT))


def _num_tiles(tensors: Tensors, tiles: int) -> Sequence[int]:
    """How many tiles each picture has; by default all are one picture's."""
    if wire.NUM_TILES not in tensors:
        return [tiles] if tiles else []
    counts = [int(count) for count in tensors[wire.NUM_TILES].reshape(-1)]
    if any(count < 1 for count in counts) or sum(counts) != tiles:
        shown = counts if len(counts) <= 40 else [*counts[:40], "…"]
        raise InvalidInput(
            f"input '{wire.NUM_TILES}' is {shown}, for {tiles} tiles; give each picture's number, at least 1, {tiles} in all"
        )
    return counts


def _options(tensors: Tensors) -> GenerateOptions:
    values = wire.options_from_json(_bytes(tensors, wire.OPTIONS)) if wire.OPTIONS in tensors else {}
    for name in SINGLE_OPTIONS:
        if name not in tensors:
            continue
        if name in values:
            raise OptionError(
                f"option '{name}' is given in '{wire.OPTIONS}' and as an input of its own; give it once"
            )
        values[name] = _scalar(tensors, name).item()
    return options_from_json(values)


def _vision_ms(tensors: Tensors) -> float:
    started_s = tensors.get(VISION_STARTED)
    if started_s is None or started_s.size == 0:
        return 0.0
    spent_s = time.time() - float(started_s.min())
    return 1000 * spent_s if 0 <= spent_s < 86400 else 0.0  # a clock that was set meanwhile


def _alone(tensors: Tensors, name: str) -> str | None:
    if name not in tensors:
        return None
    if others := sorted(set(tensors) - {name}):
        raise InvalidInput(f"input '{name}' comes with {', '.join(others)}; send it alone")
    return _text(tensors, name)


def _text(tensors: Tensors, name: str) -> str:
    value = _bytes(tensors, name)
    if len(value) > wire.MAX_PROMPT_BYTES:
        raise InvalidInput(
            f"input '{name}' has {len(value)} bytes, the limit is {wire.MAX_PROMPT_BYTES}; shorten it"
        )
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"input '{name}' is not UTF-8 ({error.reason} at byte {error.start}); send UTF-8"
        ) from error


def _bytes(tensors: Tensors, name: str) -> bytes:
    value = _scalar(tensors, name).item()
    return value if isinstance(value, bytes) else str(value).encode()


def _scalar(tensors: Tensors, name: str) -> npt.NDArray[Any]:
    if tensors[name].size != 1:
        raise InvalidInput(f"input '{name}' has {tensors[name].size} elements; give one")
    return tensors[name]
