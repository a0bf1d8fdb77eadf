"""The code that the vision tower learns to write: what stands where, by halves of patches.

A patch's 192 features are two halves of 96, one for its left 7 pixels and one for its right 7; in each, feature k is
AMPLITUDE times how surely a glyph of class k (`render.charset`) has its centre there. A glyph whose centre is near the
border of two cells is shared between them. Colours and shapes are written weakly wherever they cover a cell, and the two
features of each half that no class needs say where in its tile the patch lies: its row on the left, its column on the
right. The language model can so be taught from known contents, without pixels,
while the vision tower is still learning; afterwards both are trained together on pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from demo.recipe.render.charset import CODE_CLASSES, COLOUR_CLASS
from demo.recipe.render.page import Mark

PATCH, TILE = 14, 224
GRID = TILE // PATCH
CELL_WIDTH = PATCH // 2
AMPLITUDE = 3.0
SHARPNESS = 2.5
COVERED = 0.35
FIRST_COLOUR = min(COLOUR_CLASS.values())
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


def code_map(marks: Sequence[Mark], *, columns: int, rows: int) -> Float32:
    """float32 [rows * 16, columns * 32, 96]: each cell's shares of the classes, summing to 1 or more."""
    height, width = rows * GRID, columns * 2 * GRID
    cells = np.zeros((height, width, CODE_CLASSES), np.float32)
    if marks:
        kinds, xs, ys, _, _ = np.asarray(marks, np.float32).T
        left, right_share = _shares(xs / CELL_WIDTH)
        top, lower_share = _shares(ys / PATCH)
        for dx, x_share in ((0, 1 - right_share), (1, right_share)):
            for dy, y_share in ((0, 1 - lower_share), (1, lower_share)):
                column, row = left + dx, top + dy
                inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
                at = (row[inside], column[inside], kinds[inside].astype(np.int64))
                np.add.at(cells, at, (x_share * y_share)[inside])
    cells[..., 0] = np.maximum(0, 1 - cells[..., 1:].sum(-1))
    return cells


def cover_map(marks: Sequence[Mark], *, columns: int, rows: int) -> Int64:
    """int64 [rows * 16, columns * 32]: the class of what covers each cell's middle, 0 where nothing does."""
    cells = np.zeros((rows * GRID, columns * 2 * GRID), np.int64)
    for kind, x, y, width, height in marks:
        left, right = (round((x + side * width / 2) / CELL_WIDTH) for side in (-1, 1))
        top, bottom = (round((y + side * height / 2) / PATCH) for side in (-1, 1))
        cells[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = kind
    return cells


def _shares(place: Float32) -> tuple[Int64, Float32]:
    """The first of the two cells nearest to a place, and the share of the second."""
    shifted = place - 0.5
    first = np.floor(shifted)
    share = np.clip((shifted - first - 0.5) * SHARPNESS + 0.5, 0, 1)
    return first.astype(np.int64), share.astype(np.float32)


def tile_codes(cells: Float32) -> Float32:
    """A map of whole tiles -> [tiles, 256, 192], tiles and patches row by row."""
    return _by_tiles(cells, 2 * CODE_CLASSES)


def tile_covers(cells: Int64) -> Int64:
    """A map of whole tiles -> [tiles, 256, 2]."""
    return _by_tiles(cells, 2)


def written(codes: Float32, covers: Int64) -> Float32:
    """The features, in AMPLITUDEs, for the codes [tiles, 256, 192] and the covers [tiles, 256, 2]."""
    split = codes.reshape(*covers.shape, CODE_CLASSES) + _places()
    at = np.nonzero(covers >= FIRST_COLOUR)
    split[(*at, covers[at])] += COVERED
    return split.reshape(codes.shape).astype(np.float32)


def _places() -> Float32:
    """[256, 2, 96]: half a turn from the first row to the last, in the last two features of each half."""
    places = np.zeros((GRID, GRID, 2, CODE_CLASSES), np.float32)
    angle = np.pi * np.arange(GRID) / (GRID - 1)
    places[:, :, 0, -2:] = np.stack([np.cos(angle), np.sin(angle)], -1)[:, None]
    places[:, :, 1, -2:] = np.stack([np.cos(angle), np.sin(angle)], -1)
    return places.reshape(GRID * GRID, 2, CODE_CLASSES)


def _by_tiles(cells: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    rows, columns = cells.shape[0] // GRID, cells.shape[1] // (2 * GRID)
    split = cells.reshape(rows, GRID, columns, GRID, size)
    return split.transpose(0, 2, 1, 3, 4).reshape(rows * columns, GRID * GRID, size)
