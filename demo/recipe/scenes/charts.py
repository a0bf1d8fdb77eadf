"""Bar charts with labels below the bars and values above them."""

from __future__ import annotations

from demo.recipe import questions as ask
from demo.recipe.render.charset import COLOUR_CLASS, COLOURS
from demo.recipe.render.dense import TILE, random_type
from demo.recipe.render.page import Mark, Page, Run, Tag, Type, text_width
from demo.recipe.scene import Brush, Scene, Turn

LABELS = ("A", "B", "C", "D", "E", "F", "G", "H", "K", "M", "N", "P", "R", "S", "T")
# The numbers of the largest and the smallest bar; all others are alike.
LARGEST, SMALLEST = 1, 9
# A bar's runs, and its label among them, whose visual token is told the value above it: the value's, which comes
# before it, cannot know the label.
RUNS_OF_A_BAR, LABEL = 3, 1


def bar_charts(brush: Brush) -> Scene:
    """Two to five bars on one tile, each with a letter below it and its value above it."""
    rng = brush.rng
    page = brush.page(TILE, TILE, (255, 255, 255))
    count = rng.randint(2, 5)
    style = random_type(rng, (20, 20, 20), 26, 30, which=brush.which)
    labels, names = rng.sample(LABELS, count), rng.sample(sorted(COLOURS), count)
    values = rng.sample(range(5, 100), count)
    pitch = (TILE - 16) / count
    scale = (TILE - 70) / max(values)
    numbers = {max(values): LARGEST, min(values): SMALLEST}
    for at, (label, name, value) in enumerate(zip(labels, names, values, strict=True)):
        left, right = 8 + (at + 0.18) * pitch, 8 + (at + 0.82) * pitch
        top = TILE - 28 - scale * value
        if brush.draws:
            page.pen.rectangle((left, top, right, TILE - 28), fill=COLOURS[name])
        middle = (left + right) / 2
        centre = (middle, (top + TILE - 28) / 2, right - left, TILE - 28 - top)
        from_above = Tag(None, str(value), LARGEST if value == max(values) else None, None)
        page.marks.append(Mark(COLOUR_CLASS[name], *centre))
        page.runs.append(Run((name,), (page.marks[-1],), from_above))
        _centred(page, middle, TILE - 8, label, style, Tag(label, str(value), numbers.get(value, 0), None))
        _centred(page, middle, top - 5, str(value), style, from_above)
    return Scene("bar_charts", (page,), tuple(_turns(brush, labels, names, values)))


def _centred(page: Page, middle: float, baseline: float, words: str, style: Type, tag: Tag) -> None:
    page.text(middle - text_width(words, style) / 2, baseline, words, style, tag)


def _turns(brush: Brush, labels: list[str], names: list[str], values: list[int]) -> list[Turn]:
    largest, smallest = values.index(max(values)), values.index(min(values))
    asked = brush.rng.sample(range(len(labels)), min(len(labels), brush.questions - 1))
    turns = [
        Turn(ask.LARGEST, labels[largest]),
        Turn(ask.SMALLEST, labels[smallest]),
        Turn(ask.BAR_COLOUR, names[largest], shown=RUNS_OF_A_BAR * largest),
        *(
            Turn(ask.BAR_VALUE.format(labels[at]), str(values[at]), shown=RUNS_OF_A_BAR * at + LABEL)
            for at in asked
        ),
    ]
    brush.rng.shuffle(turns)
    return turns
