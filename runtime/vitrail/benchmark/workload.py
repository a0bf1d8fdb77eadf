"""What is asked: seeded questions about pictures drawn on the fly. Pure; equal seeds give equal bytes."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from random import Random
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from vitrail.errors import OptionError
from vitrail.tiling import MAX_TILES, choose_grid, count_tiles

# A repeated picture or continued conversation is one of the latest so many of its shape.
WINDOW = 16
MAX_TURNS = 4
STREAM_WORDS = 16
LONGEST_SIDE = 16384
_LEXICON = """
window glass light stone river bridge garden letter number street color shadow harbor market tower engine morning
winter paper silver table candle mirror forest signal corner planet ribbon copper saddle violin meadow is are has shows
holds near under behind between above beside with without many few large small old new bright
"""


class Tiling(NamedTuple):
    """How the model under test cuts pictures: pixels of a tile's side, most tiles without thumbnail, thumbnail."""

    tile_size: int
    max_tiles: int
    thumbnail: bool

    def tiles(self, width: int, height: int, *, max_tiles: int) -> int:
        """Tiles that a picture becomes, its thumbnail included."""
        grid = choose_grid(width, height, max_tiles=max_tiles, tile_size=self.tile_size)
        return count_tiles(grid, thumbnail=self.thumbnail)


class Shape(NamedTuple):
    """A picture's pixels, and the `max_tiles` that it is asked with; 0 x 0 is no picture."""

    width: int
    height: int
    max_tiles: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What questions are made of. Raises OptionError for a value outside its range.

    tiles: what each picture is cut into, thumbnail included, 0 for a question without picture; or image_sizes,
    (width, height) in pixels, instead. They take turns, in equal parts, in an order drawn by the seed.
    prompt_words of each question; output_tokens of each answer: exactly that many with ignore_eos, else at most.
    repeat_share: questions about a picture that was shown before, in a new conversation. turn_share: questions that
    continue an earlier conversation, its answers so far written by the workload. streams: answers of stream_tokens to
    questions without picture that are being written all the while, beside what is asked.
    """

    tiles: tuple[int, ...] = (7,)
    image_sizes: tuple[tuple[int, int], ...] = ()
    prompt_words: int = 16
    output_tokens: int = 32
    ignore_eos: bool = True
    repeat_share: float = 0.0
    turn_share: float = 0.0
    seed: int = 0
    streams: int = 0
    stream_tokens: int = 64

    def __post_init__(self) -> None:
        if not (self.tiles or self.image_sizes):
            raise OptionError("the workload has neither tiles nor image sizes; give one of them")
        for size in self.image_sizes:
            if not all(1 <= side <= LONGEST_SIDE for side in size):
                raise OptionError(f"image size {size[0]}x{size[1]}: each side must be 1 to {LONGEST_SIDE}")
        least = {"prompt_words": 1, "output_tokens": 1, "seed": 0, "streams": 0, "stream_tokens": 2}
        for name, limit in least.items():
            if getattr(self, name) < limit:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be at least {limit}")
        shares = (self.repeat_share, self.turn_share)
        if not (min(shares) >= 0 and sum(shares) <= 1):
            raise OptionError(
                f"repeat_share {self.repeat_share:g} and turn_share {self.turn_share:g}: "
                "give shares from 0 whose sum is at most 1"
            )

    @property
    def of_streams(self) -> Workload:
        """What the streams are asked."""
        return replace(
            self,
            tiles=(0,),
            image_sizes=(),
            prompt_words=STREAM_WORDS,
            output_tokens=self.stream_tokens,
            ignore_eos=True,
            repeat_share=0.0,
            turn_share=0.0,
            streams=0,
        )


class Picture(NamedTuple):
    """All that a picture is drawn from."""

    shape: Shape
    seed: int


@dataclass(frozen=True, slots=True)
class Question:
    """One request: its picture, the seeds of its user turns (the last is the question) and whether the picture is new."""

    index: int
    picture: Picture | None
    turns: tuple[int, ...]
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """A question ready to be sent; size_bytes is what it holds in memory, about."""

    question: Question
    messages: list[dict[str, Any]]
    options: dict[str, Any]
    size_bytes: int


def shapes(workload: Workload, tiling: Tiling) -> tuple[Shape, ...]:
    """The shapes that a workload asks for. Raises OptionError for a tile count that no picture gives."""
    if workload.image_sizes:
        return tuple(Shape(*size, tiling.max_tiles) for size in workload.image_sizes)
    return tuple(_shape(tiles, tiling) for tiles in workload.tiles)


def _shape(tiles: int, tiling: Tiling) -> Shape:
    """A picture that is cut into exactly `tiles`: that of the squarest grid for which there is one."""
    if tiles == 0:
        return Shape(0, 0, tiling.max_tiles)
    cells = tiles - 1 if tiling.thumbnail and tiles > 1 else tiles
    if not 1 <= cells <= MAX_TILES:
        raise OptionError(
            f"{tiles} tiles are not possible; give 0 (no picture) to {MAX_TILES + tiling.thumbnail}"
        )
    max_tiles = max(cells, tiling.max_tiles)
    divisors = [rows for rows in range(1, cells + 1) if cells % rows == 0 and rows * rows <= cells]
    for rows in reversed(divisors):
        for scale in (1.0, 0.9, 0.8, 0.75):  # a full grid may be taken for a larger one of its ratio
            side = int(tiling.tile_size * scale)
            shape = Shape(side * cells // rows, side * rows, max_tiles)
            if tiling.tiles(shape.width, shape.height, max_tiles=max_tiles) == tiles:
                return shape
    raise OptionError(
        f"no picture is cut into {tiles} tiles by this model (a thumbnail counts); choose another count"
    )


def questions(workload: Workload, sizes: tuple[Shape, ...], *, stage: str) -> Iterator[Question]:
    """Questions without end. Stages differ from each other, so that none meets pictures that an earlier one showed."""
    random = Random(f"{workload.seed} {stage}")  # noqa: S311 - a workload is no secret
    recent: dict[Shape, deque[Question]] = {shape: deque(maxlen=WINDOW) for shape in sizes}
    order = _in_turns(sizes, random)
    for index in count():
        shape = next(order)
        known = recent[shape]
        question = _next_question(index, shape, known, workload=workload, random=random)
        known.append(question)
        yield question


def _in_turns(sizes: tuple[Shape, ...], random: Random) -> Iterator[Shape]:
    """Each shape once, in a drawn order, again and again."""
    while True:
        yield from random.sample(sizes, len(sizes))


def _next_question(
    index: int, shape: Shape, known: deque[Question], *, workload: Workload, random: Random
) -> Question:
    """A conversation continued, a picture repeated, or all new. A continued one takes its earlier state's place."""
    draw, seed = random.random(), random.getrandbits(32)
    open_ones = [question for question in known if len(question.turns) < MAX_TURNS]
    if open_ones and draw < workload.turn_share:
        earlier = random.choice(open_ones)
        known.remove(earlier)
        return replace(
            earlier, index=index, turns=(*earlier.turns, seed), repeated=earlier.picture is not None
        )
    if known and shape.width and draw < workload.turn_share + workload.repeat_share:
        return Question(index, random.choice(known).picture, (seed,), repeated=True)
    return Question(index, Picture(shape, random.getrandbits(32)) if shape.width else None, (seed,))


def ask(question: Question, workload: Workload) -> Ask:
    """Draw the picture and write the messages."""
    data = draw(question.picture) if question.picture else b""
    messages: list[dict[str, Any]] = []
    for seed in question.turns:
        messages.append({"role": "user", "content": f"{words(workload.prompt_words, seed=seed)}?"})
        answer = words(max(1, workload.output_tokens * 3 // 4), seed=seed + 1)
        messages.append({"role": "assistant", "content": answer})
    messages.pop()
    if data:
        picture = {"type": "image", "image": data}
        messages[0]["content"] = [picture, {"type": "text", "text": messages[0]["content"]}]
    options: dict[str, Any] = {"max_tokens": workload.output_tokens, "ignore_eos": workload.ignore_eos}
    if question.picture:
        options["max_tiles"] = question.picture.shape.max_tiles
    text_bytes = sum(len(str(message["content"])) for message in messages[1:])
    return Ask(question, messages, options, size_bytes=len(data) + text_bytes)


def words(number: int, *, seed: int) -> str:
    """So many English words."""
    return " ".join(Random(seed).choices(_LEXICON.split(), k=number))  # noqa: S311 - a workload is no secret


def draw(picture: Picture) -> bytes:
    """A JPEG with soft colours, edges and lettering-like strokes: about the size and cost of a photograph."""
    width, height, _ = picture.shape
    random = np.random.default_rng(picture.seed)
    coarse = random.integers(0, 256, (max(2, height // 48), max(2, width // 48), 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(image)
    corners = random.random((24, 4)) * np.array([width, height, width / 3, height / 3])
    for (left, top, wide, high), color in zip(
        corners.tolist(), random.integers(0, 256, (24, 3)).tolist(), strict=True
    ):
        pen.ellipse((left, top, left + wide, top + high), fill=tuple(color))
        pen.line((left, top, left + high, top + wide), fill=tuple(color[::-1]), width=2)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()
