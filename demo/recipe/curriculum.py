"""Which scenes come when, and how many of them fit into one step."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from demo.recipe.render.weather import weather
from demo.recipe.scene import Brush, Scene
from demo.recipe.scenes import MAKERS
from demo.recipe.scenes.pages import RECEIPT_GRIDS, SIGN_GRIDS, TABLE_GRIDS

GRIDS = {"receipts": RECEIPT_GRIDS, "tables": TABLE_GRIDS, "signs": SIGN_GRIDS}
QUESTIONS = 8
PICTURES = {"two_pictures": 2, "clip": 4}

# Shares of the skills. Reading comes first: everything else builds on it.
FIRST = {"numbers": 2, "words": 2, "codes": 2, "lines": 3, "passages": 8}
MIXED = {
    "passages": 4,
    "numbers": 3, "words": 6, "codes": 4, "lines": 6, "no_text": 1, "receipts": 8, "tables": 22, "signs": 9,
    "shapes": 20, "bar_charts": 2, "boxes": 8, "two_pictures": 1, "clip": 0.5,
}  # fmt: skip


def scenes(
    rng: random.Random, shares: dict[str, float], *, tiles: int, draws: bool, most_tiles: int = 13
) -> list[Scene]:
    """Scenes of one skill and one grid, about `tiles` tiles in all; the questions of a scene count as one more.

    Where they are drawn, some are askew, blurred, noisy or saved as JPEG.
    """
    skill = rng.choices(list(shares), weights=list(shares.values()))[0]
    make: Callable[..., Scene] = MAKERS[skill]
    options: dict[str, Any] = {}
    each = PICTURES.get(skill, 1)
    if skill in GRIDS:
        fitting = [grid for grid in GRIDS[skill] if _tiles(grid) <= most_tiles]
        options["grid"] = rng.choice(fitting)
        each = _tiles(options["grid"])
    brush = Brush(rng, draws=draws, questions=QUESTIONS)
    made = [make(brush, **options) for _ in range(max(1, round(tiles / (each + 1))))]
    for page in (page for scene in made for page in scene.pages if draws):
        weather(page, rng, turns=skill != "boxes")
    return made


def _tiles(grid: tuple[int, int]) -> int:
    tiles = grid[0] * grid[1]
    return tiles + (tiles > 1)
