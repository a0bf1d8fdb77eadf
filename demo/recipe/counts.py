"""What is counted up to a visual token: the rows that begin before it, or the shapes, and those of its own kind.

A head that looks at all of these alike, and as much at the sequence's beginning, has their number in what it brings: the
beginning's share is one part of so many and one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from demo.recipe.render.charset import SHAPES
from demo.recipe.render.page import Page, Run
from demo.recipe.spots import IGNORED, TOKENS_PER_TILE, tile_count, token_square

# All, and those of a kind; as many of each as are told.
COUNTS, MOST = 2, 12
Int64 = npt.NDArray[np.int64]


def scene_counts(pages: Sequence[Page]) -> Int64:
    """[squares, COUNTS, MOST] for the visual tokens of all pages: those that are counted with each, IGNORED where fewer."""
    counts = np.full((sum(map(tile_count, pages)) * TOKENS_PER_TILE, COUNTS, MOST), IGNORED)
    first, begun = 0, dict[tuple[int, int], int]()
    for at, page in enumerate(pages):
        shapes = sorted(
            (first + token_square(page, run.marks[0]), run.pieces[1]) for run in page.runs if is_shape(run)
        )
        for square, kind in shapes:
            for which, kinds in enumerate((SHAPES, (kind,))):
                _tell(counts, square, which, [each for each, of in shapes if of in kinds])
        for run in page.runs:
            if run.marks and run.tag.column is not None and run.tag.number is not None:
                squares = [first + token_square(page, mark) for mark in run.marks]
                begun.setdefault((at, run.tag.number), squares[0])
                for square in squares:
                    _tell(counts, square, 0, list(begun.values()))
        first += tile_count(page) * TOKENS_PER_TILE
    return counts


def is_shape(run: Run) -> bool:
    return run.pieces[-1] in SHAPES


def _tell(counts: Int64, square: int, which: int, squares: list[int]) -> None:
    """Of two in one visual token it is the first's row that it belongs to; what comes after it cannot be counted."""
    if counts[square, which, 0] == IGNORED:
        seen = sorted({each for each in squares if each <= square})[-MOST:]
        counts[square, which, : len(seen)] = seen
