"""A page: pixels, and the centre of every glyph and shape on it.

Drawing is optional, because the language model also learns from the known contents alone (`demo.recipe.oracle`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from PIL import Image, ImageDraw

from demo.recipe.render.charset import CHARACTER_CLASS, SHAPES
from demo.recipe.render.fonts import face

Rgb = tuple[int, int, int]
# The middle of a line of text above its baseline, as a share of the type size.
MIDDLE = 0.36


class Mark(NamedTuple):
    """Something of a class (`charset`) with its centre and its size in pixels."""

    kind: int
    x: float
    y: float
    width: float
    height: float


class Tag(NamedTuple):
    """What a line belongs to: what begins its row, what heads its column, its number, and which of its row it is.

    None where that cannot be known from what stands before it, in the order of visual tokens.
    """

    key: str | None = ""
    head: str | None = ""
    number: int | None = 0
    column: int | None = 0


class Run(NamedTuple):
    """A printed line, its pieces being characters, or a shape, whose pieces are its colour and its name.

    `marks`: one for each piece that is not a space.
    """

    pieces: tuple[str, ...]
    marks: tuple[Mark, ...]
    tag: Tag

    @property
    def words(self) -> str:
        return "".join(self.pieces)

    @property
    def is_shape(self) -> bool:
        return self.pieces[-1] in SHAPES

    @property
    def heading(self) -> str:
        """What it is called as the head of others: a shape by the last two letters of its colour, which no other has."""
        return self.pieces[0][-2:] if self.is_shape else self.words


class Type(NamedTuple):
    """A face, its size in pixels and its colour."""

    name: str
    size_px: int
    colour: Rgb


@dataclass
class Page:
    """width x height pixels; `image` is None where only the contents are wanted.

    `runs`: every printed line and every shape. `corners`: numbers of boxes, each at the corner that says it.
    """

    width: int
    height: int
    background: Rgb = (255, 255, 255)
    draws: bool = True
    marks: list[Mark] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    corners: list[Run] = field(default_factory=list)
    image: Image.Image | None = None

    def __post_init__(self) -> None:
        if self.draws:
            self.image = Image.new("RGB", (self.width, self.height), self.background)

    @property
    def pen(self) -> ImageDraw.ImageDraw:
        assert self.image is not None
        return ImageDraw.Draw(self.image)

    def text(self, x: float, baseline: float, words: str, style: Type, tag: Tag | None = None) -> float:
        """Print words from x on a baseline; returns where they end. A line without a tag begins its own row."""
        if self.draws:
            font = face(style.name, style.size_px)
            self.pen.text((x, baseline), words, font=font, fill=style.colour, anchor="ls")
        y, first = baseline - MIDDLE * style.size_px, len(self.marks)
        for character in words:
            width = advance(style.name, style.size_px, character)
            if character != " ":
                self.marks.append(
                    Mark(CHARACTER_CLASS[character], x + width / 2, y, width, style.size_px * 0.8)
                )
            x += width
        self.runs.append(Run(tuple(words), tuple(self.marks[first:]), tag or Tag(words)))
        return x


def text_width(words: str, style: Type) -> float:
    """Width in pixels of a line."""
    return sum(advance(style.name, style.size_px, character) for character in words)


@lru_cache(maxsize=1 << 17)
def advance(name: str, size_px: int, character: str) -> float:
    return face(name, size_px).getlength(character)
