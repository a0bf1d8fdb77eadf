"""Where in its pictures an answer is to be read: the visual token of each character, or of what shows it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from demo.recipe.asked import token_at
from demo.recipe.questions import NOTHING
from demo.recipe.render.dense import SQUARE, TILE
from demo.recipe.render.page import Mark, Page, Run
from demo.recipe.scene import Scene, Turn

TOKENS_PER_TILE, SIDE = 64, 8
IGNORED = -100
# Characters of one visual token that are told apart by their order.
ORDER = 3
# Of a box, one for each of its numbers.
CORNERS = 4


class Spot(NamedTuple):
    """Where a character is printed: its visual token, counted over all pictures, its order in it from the left, and
    how many characters of its line stand before it.
    """

    square: int
    order: int
    index: int = 0


NOWHERE = Spot(IGNORED, 0)
# Of the sequence, where nothing is.
BEGINNING = Spot(-1, 0)


def printed_lines(scene: Scene) -> dict[str, list[Spot]]:
    """Every line and every row that is printed once -> where its characters stand; NOWHERE for spaces."""
    lines: dict[str, list[Spot]] = {}
    twice: set[str] = set()
    first = 0
    for page in scene.pages:
        placed = [(run, run_spots(page, run, first)) for run in page.runs]
        rows = [list(row) for _, row in groupby(placed, lambda each: each[0].tag.number)]
        joined = [_joined(row) for row in rows if len(row) > 1]
        for words, spots in (*((run.words, spots) for run, spots in placed), *joined):
            (twice.add if words in lines else lambda _: None)(words)
            lines[words] = spots
        first += tile_count(page) * TOKENS_PER_TILE
    return {words: spots for words, spots in lines.items() if words not in twice}


def run_spots(page: Page, run: Run, first: int) -> list[Spot]:
    spots = iter(ordered(first + token_square(page, mark) for mark in run.marks))
    return [NOWHERE if each == " " else next(spots)._replace(index=at) for at, each in enumerate(run.pieces)]


def _joined(row: list[tuple[Run, list[Spot]]]) -> tuple[str, list[Spot]]:
    """The lines of a row as an answer gives them: one after the other with spaces between."""
    spots = [spot for _, each in row for spot in (*each, NOWHERE)]
    return " ".join(run.words for run, _ in row), spots[:-1]


def ordered(squares: Iterable[int]) -> list[Spot]:
    """The squares of a line's characters from left to right, each with its order in its square."""
    spots: list[Spot] = []
    for square in squares:
        order = spots[-1].order + 1 if spots and spots[-1].square == square else 0
        spots.append(Spot(square, min(order, ORDER - 1)))
    return spots


def token_square(page: Page, mark: Mark) -> int:
    """The visual token of a page in whose square a mark has its centre, the nearest where that lies outside."""
    column = int(min(max(mark.x, 0), page.width - 1) // SQUARE)
    row = int(min(max(mark.y, 0), page.height - 1) // SQUARE)
    tile = row // SIDE * (page.width // TILE) + column // SIDE
    return tile * TOKENS_PER_TILE + row % SIDE * SIDE + column % SIDE


def answer_spots(
    scene: Scene, turn: Turn, answer: Sequence[int], printed: dict[str, list[Spot]]
) -> list[Spot]:
    """For each token of an answer, its end the last, where to look; all NOWHERE where tokens are not characters."""
    if turn.answer == NOTHING:
        return [*[BEGINNING] * (len(answer) - 1), NOWHERE]
    if turn.shown is not None:
        return [*_shown(scene, turn.shown, turn, answer[:-1]), NOWHERE]
    lines = turn.answer.split("\n")
    spots = [each for line in lines for each in (*printed.get(line, [NOWHERE] * len(line)), NOWHERE)]
    return spots if len(spots) == len(answer) else [NOWHERE] * len(answer)


def _shown(scene: Scene, shown: int, turn: Turn, answer: Sequence[int]) -> list[Spot]:
    """For each token of an answer where what shows it ends; for each number of a box, and what follows a shorter one,
    the corner that says it.
    """
    first = 0
    for page in scene.pages:
        if shown < len(page.runs):
            break
        shown, first = shown - len(page.runs), first + tile_count(page) * TOKENS_PER_TILE
    run = page.runs[shown]
    spots = [_ending(run_spots(page, run, first))] * len(answer)
    if turn.box is None:
        return spots
    numbers = page.corners[CORNERS * shown : CORNERS * (shown + 1)]
    for number, corner in zip(re.finditer(r"\d+", turn.answer), numbers, strict=True):
        square, start = first + token_square(page, corner.marks[0]), token_at(answer, number.start())
        end = max(start + ORDER, token_at(answer, number.end() - 1) + 1)
        spots[start:end] = [Spot(square, min(at, ORDER - 1)) for at in range(end - start)]
    return spots


def _ending(spots: list[Spot]) -> Spot:
    """The first spot of the last visual token of a run: of its tokens only that one has seen all of it."""
    return next(each for each in spots if each.square == spots[-1].square)


def tile_count(page: Page) -> int:
    tiles = (page.width // TILE) * (page.height // TILE)
    return tiles + (tiles > 1)
