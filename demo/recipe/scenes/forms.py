"""Coloured shapes: how many, which colour, which shape, what stands beside, and where."""

from __future__ import annotations

import math
from collections.abc import Sequence

from demo.recipe import oracle
from demo.recipe import questions as ask
from demo.recipe.render.charset import COLOUR_CLASS, COLOURS, SHAPE_CLASS, SHAPES
from demo.recipe.render.dense import SQUARE, TILE
from demo.recipe.render.page import Mark, Page, Rgb, Run, Tag
from demo.recipe.scene import Brush, Scene, Turn

CELLS = 3
FEW_QUESTIONS = 3
NOTHING_SHARE = 0.4
LIGHT = ((255, 255, 255), (245, 240, 225), (225, 235, 245), (230, 230, 230))


def shapes(brush: Brush) -> Scene:
    """One to five shapes on a grid of 3 x 3 places, no two alike in colour and shape."""
    rng = brush.rng
    page = brush.page(TILE, TILE, rng.choice(LIGHT))
    placed = _place(brush, page, rng.randint(1, 5))
    first = rng.choice(sorted(placed))
    turns = [_count("shapes", page.runs, SHAPES)]
    for colour, shape in dict.fromkeys((first, *sorted(placed)[: brush.questions - FEW_QUESTIONS])):
        turns += [turn for turn in _about(placed, page.runs, colour, shape) if turn not in turns]
    if brush.which == "train":  # mostly there is nothing, which would be all that is learned
        turns = [turn for turn in turns if turn.answer != ask.NOTHING or rng.random() < NOTHING_SHARE]
    rng.shuffle(turns)
    return Scene("shapes", (page,), tuple(turns))


def _count(name: str, runs: list[Run], kinds: Sequence[str]) -> Turn:
    alike = tuple(at for at, run in enumerate(runs) if run.pieces[1] in kinds)
    return Turn(ask.COUNT.format(name), str(len(alike)), counted=alike)


def _about(
    placed: dict[tuple[str, str], tuple[int, int]], runs: list[Run], colour: str, shape: str
) -> list[Turn]:
    """How many there are of a shape, its colour and its shape where nothing else has them, what stands beside it."""
    at = list(placed).index((colour, shape))
    turns = [_count(ask.PLURALS[shape], runs, [shape])]
    if sum(each == shape for _, each in placed) == 1:
        turns.append(Turn(ask.COLOUR_OF.format(shape), colour, shown=at))
    if sum(each == colour for each, _ in placed) == 1:
        turns.append(Turn(ask.SHAPE_OF.format(colour), shape, shown=at))
    return [*turns, _beside(placed, runs, colour, shape)]


def _beside(placed: dict[tuple[str, str], tuple[int, int]], runs: list[Run], colour: str, shape: str) -> Turn:
    """What stands in the next place, which is looked for there where its head is known to name this one."""
    column, row = placed[colour, shape]
    question = ask.BESIDE.format(f"{colour} {shape}")
    for at, ((other_colour, other), place) in enumerate(placed.items()):
        if place == (column + 1, row):
            shown = None if runs[at].tag.head is None else at
            return Turn(question, f"the {other_colour} {other}", shown=shown)
    return Turn(question, ask.NOTHING)


def boxes(brush: Brush) -> Scene:
    """One to three shapes; the place of one of them."""
    rng = brush.rng
    page = brush.page(TILE, TILE, rng.choice(LIGHT))
    placed = _place(brush, page, rng.randint(1, 3))
    turns = []
    for at, (colour, shape) in enumerate(placed):
        page.corners += _corners(page, page.runs[at].marks[0])
        box = _thousandths(page.runs[at].marks[0], page)
        name = f"{colour} {shape}"
        answer = f"<ref>{name}</ref><box>[[{', '.join(map(str, box))}]]</box>"
        turns.append(Turn(ask.FIND.format(name), answer, box, at))
    return Scene("boxes", (page,), tuple(turns))


def _thousandths(mark: Mark, page: Page) -> tuple[int, int, int, int]:
    sides = (
        (mark.x - mark.width / 2) / page.width,
        (mark.y - mark.height / 2) / page.height,
        (mark.x + mark.width / 2) / page.width,
        (mark.y + mark.height / 2) / page.height,
    )
    x1, y1, x2, y2 = (round(1000 * min(max(side, 0), 1)) for side in sides)
    return x1, y1, x2, y2


def _place(brush: Brush, page: Page, count: int) -> dict[tuple[str, str], tuple[int, int]]:
    """Draw shapes of different colours, or colours and shapes; (colour, shape) -> (column, row)."""
    rng = brush.rng
    places = rng.sample([(column, row) for row in range(CELLS) for column in range(CELLS)], count)
    chosen = rng.sample(sorted(COLOURS), count)
    placed, drawn = {}, []
    pitch = page.width / CELLS
    for colour, (column, row) in zip(chosen, places, strict=True):
        shape = rng.choice(SHAPES)
        radius = rng.uniform(0.22, 0.42) * pitch
        slack = pitch / 2 - radius
        x = (column + 0.5) * pitch + rng.uniform(-slack, slack)
        y = (row + 0.5) * pitch + rng.uniform(-slack, slack)
        draw_shape(page, shape, (x, y), radius, COLOURS[colour])
        marks = tuple(
            Mark(kind, x, y, 2 * radius, 2 * radius) for kind in (COLOUR_CLASS[colour], SHAPE_CLASS[shape])
        )
        # What covers a cell is the last that is marked there: its colour, which tells shapes apart wherever they are seen.
        page.marks += reversed(marks)
        drawn.append(Run((colour, shape), marks, Tag()))
        placed[colour, shape] = (column, row)
    page.runs += [run._replace(tag=_tag(run, drawn, placed)) for run in drawn]
    return placed


def _tag(run: Run, drawn: list[Run], placed: dict[tuple[str, str], tuple[int, int]]) -> Tag:
    """How many shapes there are up to one, in the order of visual tokens, as its number.

    The head names what stands to its left, which may be nothing; None where that comes later.
    """
    seen = [each for each in drawn if _order(each) <= _order(run)]
    column, row = placed[run.pieces]
    left = next((each for each in drawn if placed[each.pieces] == (column - 1, row)), None)
    head = "" if left is None else left.heading if left in seen else None
    return Tag(None, head, len(seen), None)


def _corners(page: Page, mark: Mark) -> list[Run]:
    """A box's four numbers, each as if it were printed in the last half patch before a corner."""
    across, down = (mark.width - oracle.CELL_WIDTH) / 2, (mark.height - oracle.PATCH) / 2
    steps = ((-across, -down), (across, -down), (across, down), (-across, down))
    return [
        Run(tuple(digits), (mark._replace(x=mark.x + dx, y=mark.y + dy),) * len(digits), Tag())
        for digits, (dx, dy) in zip(map(str, _thousandths(mark, page)), steps, strict=True)
    ]


def _order(run: Run) -> tuple[float, float]:
    return run.marks[0].y // SQUARE, run.marks[0].x // SQUARE


def draw_shape(page: Page, shape: str, centre: tuple[float, float], radius: float, colour: Rgb) -> None:
    """A filled shape inside the square of `radius` around its centre."""
    if not page.draws:
        return
    x, y = centre
    if shape == "circle":
        page.pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        return
    page.pen.polygon([(x + radius * dx, y + radius * dy) for dx, dy in CORNERS[shape]], fill=colour)


def _star() -> list[tuple[float, float]]:
    return [
        (math.sin(math.pi * at / 5) * reach, -math.cos(math.pi * at / 5) * reach)
        for at, reach in enumerate((1.0, 0.42) * 5)
    ]


_ARM = 0.33
CORNERS: dict[str, list[tuple[float, float]]] = {
    "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    "triangle": [(0, -1), (1, 1), (-1, 1)],
    "star": _star(),
    "cross": [
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ],
}  # fmt: skip
