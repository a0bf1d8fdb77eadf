"""One to four short strings on one tile, and tiles without any."""

from __future__ import annotations

from collections.abc import Callable

from demo.recipe import questions as ask
from demo.recipe.render import words as text
from demo.recipe.render.dense import TILE, colours, fitting_size, random_type
from demo.recipe.render.page import Page, Tag, Type, text_width
from demo.recipe.scene import Brush, Scene, Turn

MARGIN_PX = 6
KINDS: tuple[tuple[str, Callable[[Brush], str]], ...] = (
    (ask.NUMBER, lambda brush: text.number(brush.rng)),
    (ask.WORD, lambda brush: text.word(brush.rng, brush.which)),
    (ask.CODE, lambda brush: text.code(brush.rng)),
)


def numbers(brush: Brush) -> Scene:
    return _single("numbers", brush, 0)


def words(brush: Brush) -> Scene:
    return _single("words", brush, 1)


def codes(brush: Brush) -> Scene:
    return _single("codes", brush, 2)


def _single(skill: str, brush: Brush, kind: int) -> Scene:
    question, make = KINDS[kind]
    string = make(brush)
    page = printed(brush, [string])
    asked = question if brush.rng.random() < 0.7 else ask.READ
    return Scene(skill, (page,), (Turn(asked, string),))


def lines(brush: Brush) -> Scene:
    """Two to four lines of any kind: all of them, one by its place, one by its kind, how many."""
    rng = brush.rng
    count = rng.randint(2, 4)
    strings = [rng.choice(KINDS)[1](brush) for _ in range(count)]
    page = printed(brush, strings)
    asked = rng.sample(range(count), min(count, brush.questions - 1))
    turns = [
        Turn(ask.READ, "\n".join(strings)),
        *(Turn(ask.LINE.format(at + 1), strings[at]) for at in asked),
        Turn(ask.LINES, str(count)),
    ]
    rng.shuffle(turns)
    return Scene("lines", (page,), tuple(turns))


def passages(brush: Brush) -> Scene:
    """A tile full of lines, to be read as a whole: the most reading for one picture. For training."""
    rng = brush.rng
    background, ink = colours(rng)
    page = brush.page(TILE, TILE, background)
    style = random_type(rng, ink, *brush.sizes_px, which=brush.which)
    pitch = style.size_px * rng.uniform(1.15, 1.6)
    baseline = pitch * rng.uniform(0.8, 1.2)
    printed_lines = []
    while baseline < TILE - 0.3 * style.size_px:
        line = _filling(brush, style)
        printed_lines.append(line)
        page.text(MARGIN_PX, baseline, line, style, Tag(line, number=len(printed_lines)))
        baseline += pitch
    return Scene("passages", (page,), (Turn(ask.READ, "\n".join(printed_lines)),))


def _filling(brush: Brush, style: Type) -> str:
    """Strings side by side, as many as a line takes; at least one, cut to fit."""
    line = brush.rng.choice(KINDS)[1](brush)
    while text_width(line, style) > TILE - 2 * MARGIN_PX:
        line = line[:-1]
    while brush.rng.random() < 0.85:
        longer = f"{line} {brush.rng.choice(KINDS)[1](brush)}"
        if text_width(longer, style) > TILE - 2 * MARGIN_PX:
            break
        line = longer
    return line


def no_text(brush: Brush) -> Scene:
    rng = brush.rng
    background, ink = colours(rng)
    page = brush.page(TILE, TILE, background)
    if brush.draws and rng.random() < 0.6:
        for _ in range(rng.randint(1, 4)):
            corners = sorted(rng.choices(range(TILE), k=2)), sorted(rng.choices(range(TILE), k=2))
            (x1, x2), (y1, y2) = corners
            draw = rng.choice((page.pen.rectangle, page.pen.ellipse, page.pen.line))
            draw((x1, y1, x2, y2), fill=ink)
    asked = rng.sample((ask.NUMBER, ask.WORD, ask.CODE, ask.READ, ask.TOTAL, ask.SIGN), 2)
    return Scene("no_text", (page,), tuple(Turn(question, ask.NO_TEXT) for question in asked))


def printed(brush: Brush, strings: list[str], *, first: int = 1) -> Page:
    """The strings one below the other somewhere on a tile, each in a face and size of its own or all alike.

    `first`: the number of the first, from which the others count on.
    """
    rng = brush.rng
    background, ink = colours(rng)
    page = brush.page(TILE, TILE, background)
    smallest, largest = brush.sizes_px
    largest = min(largest, int(0.8 * TILE / len(strings)))
    style = random_type(rng, ink, smallest, max(smallest, largest), which=brush.which)
    alike = rng.random() < 0.5
    styles = [
        fitting_size(
            string,
            style if alike else random_type(rng, ink, smallest, max(smallest, largest), which=brush.which),
            TILE - 2 * MARGIN_PX,
        )
        for string in strings
    ]
    return _placed(brush, page, strings, styles, first)


def _placed(brush: Brush, page: Page, strings: list[str], styles: list[Type], first: int) -> Page:
    rng = brush.rng
    heights = [1.25 * style.size_px for style in styles]
    y = rng.uniform(0, max(0.0, TILE - sum(heights)))
    slack = max(0.0, TILE - sum(heights) - y) / len(strings)
    for number, (string, style, height) in enumerate(zip(strings, styles, heights, strict=True), first):
        room, tag = TILE - text_width(string, style) - 2 * MARGIN_PX, Tag(string, number=number)
        page.text(MARGIN_PX + rng.uniform(0, max(0.0, room)), y + 0.8 * height, string, style, tag)
        y += height + rng.uniform(0, slack)
    return page
