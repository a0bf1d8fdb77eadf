"""What is counted at a place of the sequence: at a visual token where a row begins the rows up to it, at one that shows a shape the
shapes up to it; where an answer says how many there are, all that it counts.

A head that looks at all of these alike, and as much at the sequence's beginning, has their number in what it brings: the
beginning's share is one part of so many and one. Rows hand their number on by their links, a layer later.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from demo.recipe.render.page import Page
from demo.recipe.spots import IGNORED, TOKENS_PER_TILE, tile_count, token_square

# As many as are told.
MOST = 12
Int64 = npt.NDArray[np.int64]


def scene_counts(pages: Sequence[Page]) -> Int64:
    """[squares, MOST] for the visual tokens of all pages: those that are counted with each, IGNORED where fewer."""
    counts = np.full((sum(map(tile_count, pages)) * TOKENS_PER_TILE, MOST), IGNORED)
    first = 0
    for page in pages:
        shapes = {token_square(page, run.marks[0]) for run in page.runs if run.is_shape}
        for alike in (shapes, _beginnings(page)):
            for square in alike:
                counts[first + square] = _told(first + each for each in alike if each <= square)
        first += tile_count(page) * TOKENS_PER_TILE
    return counts


def counted(page: Page, runs: Sequence[int]) -> Int64:
    """[MOST] squares of a page that show these of its runs, IGNORED where fewer."""
    return _told(token_square(page, page.runs[at].marks[0]) for at in runs)


def _beginnings(page: Page) -> list[int]:
    """Where the rows with numbers from 1 on begin; none where one begins before another with a smaller number."""
    begun = dict[int, int]()
    for run in page.runs:
        if run.marks and run.tag.column is not None and run.tag.number:
            begun.setdefault(run.tag.number, token_square(page, run.marks[0]))
    squares = list(begun.values())
    return squares if squares == sorted(set(squares)) else []


def _told(squares: Iterable[int]) -> Int64:
    seen = sorted(set(squares))[-MOST:]
    return np.pad(np.asarray(seen, np.int64), (0, MOST - len(seen)), constant_values=IGNORED)
