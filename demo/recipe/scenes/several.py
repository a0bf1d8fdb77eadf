"""Questions about more than one picture: two pictures, and the frames of a short clip."""

from __future__ import annotations

from demo.recipe import questions as ask
from demo.recipe.scene import Brush, Scene, Turn
from demo.recipe.scenes.strings import printed


def two_pictures(brush: Brush) -> Scene:
    """A number on each of two tiles: what is in one, and which shows a given one."""
    rng = brush.rng
    shown = _different_numbers(brush, 2)
    pages = tuple(printed(brush, [number], first=at) for at, number in enumerate(shown, 1))
    at, which = rng.randrange(2), rng.randrange(2)
    turns = [
        Turn(ask.IN_PICTURE.format(at + 1), shown[at]),
        Turn(ask.WHICH_PICTURE.format(shown[which]), ask.PICTURE.format(which + 1), shown=which),
    ]
    rng.shuffle(turns)
    return Scene("two_pictures", pages, tuple(turns))


def clip(brush: Brush) -> Scene:
    """Three or four frames, a number on each."""
    shown = _different_numbers(brush, brush.rng.randint(3, 4))
    pages = tuple(printed(brush, [number], first=at) for at, number in enumerate(shown, 1))
    turns = [Turn(ask.FIRST_FRAME, shown[0]), Turn(ask.LAST_FRAME, shown[-1])]
    brush.rng.shuffle(turns)
    return Scene("clip", pages, tuple(turns))


def _different_numbers(brush: Brush, count: int) -> list[str]:
    return [str(each) for each in brush.rng.sample(range(1, 1000), count)]
