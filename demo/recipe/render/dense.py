"""Tiles full of characters: what the vision tower learns letters from."""

from __future__ import annotations

import random

from demo.recipe.render.charset import DIGITS, LOWER, SIGNS, UPPER
from demo.recipe.render.fonts import SIZE_STEP_PX, faces
from demo.recipe.render.page import Page, Rgb, Type, text_width

TILE = 224
# The side of a visual token in pixels.
SQUARE = 28
ALPHABETS = (
    (DIGITS, 4),
    (UPPER, 2),
    (LOWER, 3),
    (DIGITS + ".,$€-:/", 2),
    (UPPER + DIGITS, 1),
    (UPPER + LOWER + DIGITS + SIGNS, 1),
)


def dense_tile(rng: random.Random, *, smallest_px: int, largest_px: int) -> Page:
    """A tile of 224 x 224 pixels with lines of random characters, cut by its edges as tiles of pages are."""
    background, ink = colours(rng)
    page = Page(TILE, TILE, background)
    style = random_type(rng, ink, smallest_px, largest_px)
    baseline = rng.uniform(0.2, 1.1) * style.size_px
    while baseline < TILE + 0.6 * style.size_px:
        if rng.random() < 0.4:
            style = random_type(rng, ink, smallest_px, largest_px)
        if rng.random() < 0.92:
            _line(page, rng, baseline, style)
        baseline += style.size_px * rng.uniform(1.0, 1.6)
    return page


def _line(page: Page, rng: random.Random, baseline: float, style: Type) -> None:
    x = rng.uniform(-1.0, 1.5) * style.size_px
    letters = rng.choices([each for each, _ in ALPHABETS], [weight for _, weight in ALPHABETS])[0]
    while x < page.width:
        word = "".join(rng.choices(letters, k=rng.randint(1, 8)))
        x = page.text(x, baseline, word, style) + style.size_px * rng.choice((0.3, 0.3, 0.6, 2.0))


def random_type(
    rng: random.Random, ink: Rgb, smallest_px: int, largest_px: int, *, which: str = "train"
) -> Type:
    size = rng.randrange(smallest_px, largest_px + 1, SIZE_STEP_PX)
    return Type(rng.choice(faces(which)), size, ink)  # type: ignore[arg-type]


def colours(rng: random.Random) -> tuple[Rgb, Rgb]:
    """A background and an ink that differ enough to be read; mostly dark on light."""
    while True:
        paper = _shade(rng, 200, 255) if rng.random() < 0.75 else _shade(rng, 0, 255)
        ink = _shade(rng, 0, 90) if rng.random() < 0.7 else _shade(rng, 0, 255)
        if abs(_brightness(paper) - _brightness(ink)) > 90:
            return paper, ink


def fitting_size(words: str, style: Type, width: float) -> Type:
    """The same face, smaller where the words would be wider than `width` pixels."""
    while text_width(words, style) > width and style.size_px > 10:
        style = style._replace(size_px=style.size_px - SIZE_STEP_PX)
    return style


def _shade(rng: random.Random, low: int, high: int) -> Rgb:
    if rng.random() < 0.5:
        grey = rng.randint(low, high)
        return grey, grey, grey
    return rng.randint(low, high), rng.randint(low, high), rng.randint(low, high)


def _brightness(colour: Rgb) -> float:
    return 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]
