"""A scene: pictures with known contents, and questions about them with their answers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from demo.recipe.render.fonts import Faces
from demo.recipe.render.page import Page

# Coordinates of grounding are in thousandths of the picture's sides: x1, y1, x2, y2.
Box = tuple[int, int, int, int]


class Turn(NamedTuple):
    """A question and its answer; `box` where the answer is a place.

    `shown`: which run of all pages, one after the other, tells the answer where it is not looked for as printed;
    `counted`: which runs of the only page the answer counts.
    """

    question: str
    answer: str
    box: Box | None = None
    shown: int | None = None
    counted: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Scene:
    """The pages in their order and the turns, each answerable from the pages alone."""

    skill: str
    pages: tuple[Page, ...]
    turns: tuple[Turn, ...]


@dataclass(slots=True)
class Brush:
    """What a scene is made with: chance, the faces that may be used, whether pixels are wanted, type sizes,
    and how many questions of a kind are asked at most.
    """

    rng: random.Random
    which: Faces = "train"
    draws: bool = True
    sizes_px: tuple[int, int] = (28, 44)
    questions: int = 3

    def page(self, width: int, height: int, background: tuple[int, int, int]) -> Page:
        return Page(width, height, background, draws=self.draws)


SceneMaker = Callable[[Brush], Scene]
