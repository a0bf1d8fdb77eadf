"""Pictures and questions for evaluation: faces, words and goods that training never draws, from a seed.

`samples("receipts", 200, seed=7)` gives the same 200 pictures wherever the same fonts and PIL are installed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from demo.recipe.render.weather import weather
from demo.recipe.scene import Box, Brush, Scene, Turn
from demo.recipe.scenes import MAKERS
from demo.recipe.scenes.pages import receipts, tables

SKILLS = (
    "numbers", "words", "codes", "lines", "short_receipts", "short_tables", "receipts", "tables", "signs", "bar_charts", "shapes", "boxes", "no_text",
    "two_pictures", "clip",
)  # fmt: skip
# Columns and rows of tiles. Receipts and tables need 9 to 13 of them, thumbnail included; short ones fit on one.
GRIDS = {
    "receipts": ((2, 4), (3, 3), (3, 4)),
    "tables": ((3, 3), (4, 2), (4, 3)),
    "short_receipts": ((1, 1),),
    "short_tables": ((1, 1),),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One question about one or several pictures. Any of `answers` is right; `box` is in thousandths, x1 y1 x2 y2.

    `question` is the whole text of the user's message; frames of a clip have their `<image>` marks in it, all other
    pictures go before it.
    """

    skill: str
    images: tuple[Image.Image, ...]
    question: str
    answers: tuple[str, ...]
    box: Box | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def samples(skill: str, count: int, seed: int = 0) -> Iterator[Sample]:
    """`count` samples of a skill; sample i depends on (skill, seed, i) alone. Raises KeyError for an unknown skill."""
    for at in range(count):
        rng = random.Random(f"{skill} {seed} {at}")  # noqa: S311
        scene = _scene(skill, Brush(rng, which="held_out"))
        turn = rng.choice(scene.turns)
        for page in scene.pages:
            weather(page, rng, turns=turn.box is None)
        yield _sample(skill, scene, turn)


def _scene(skill: str, brush: Brush) -> Scene:
    if skill not in GRIDS:
        return MAKERS[skill](brush)
    make = receipts if skill.endswith("receipts") else tables
    return make(brush, brush.rng.choice(GRIDS[skill]))


def _sample(skill: str, scene: Scene, turn: Turn) -> Sample:
    images = tuple(page.image for page in scene.pages if page.image is not None)
    return Sample(
        skill=skill,
        images=images,
        question=message(skill, turn.question, len(images)),
        answers=(turn.answer,),
        box=turn.box,
        metadata={"sizes": [image.size for image in images], "asked": turn.question},
    )


def message(skill: str, question: str, pictures: int) -> str:
    """The user's text: a clip's frames are numbered as InternVL numbers them (`Frame1: <image>`)."""
    if skill != "clip":
        return question
    frames = "".join(f"Frame{at}: <image>\n" for at in range(1, pictures + 1))
    return frames + question
