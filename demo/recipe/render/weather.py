"""What happens to a page before it is looked at: it lies askew, is out of focus, noisy, or saved as JPEG."""

from __future__ import annotations

import math
import random
from io import BytesIO

import numpy as np
from PIL import Image, ImageFilter

from demo.recipe.render.page import Mark, Page

SHARE = 0.12
LARGEST_TURN_DEGREES = 2.0


def weather(page: Page, rng: random.Random, *, turns: bool = True) -> None:
    """Each of these happens to a page now and then; its marks move with it."""
    assert page.image is not None
    if turns and rng.random() < SHARE:
        turn(page, rng.uniform(-LARGEST_TURN_DEGREES, LARGEST_TURN_DEGREES))
    if rng.random() < SHARE:
        page.image = page.image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
    if rng.random() < SHARE:
        page.image = noisy(page.image, rng)
    if rng.random() < SHARE:
        page.image = saved(page.image, quality=rng.randint(40, 90))


def turn(page: Page, degrees: float) -> None:
    """Turn a page counter-clockwise about its middle; what its boxes said is no longer so."""
    assert page.image is not None
    page.image = page.image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=page.background)
    across, up = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    middle_x, middle_y = page.width / 2, page.height / 2

    def turned(mark: Mark) -> Mark:
        x, y = mark.x - middle_x, mark.y - middle_y
        return mark._replace(x=middle_x + across * x + up * y, y=middle_y - up * x + across * y)

    page.marks = [turned(mark) for mark in page.marks]
    page.runs = [run._replace(marks=tuple(turned(mark) for mark in run.marks)) for run in page.runs]
    page.corners = []


def noisy(image: Image.Image, rng: random.Random) -> Image.Image:
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(2, 12), (*image.size[::-1], 1))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def saved(image: Image.Image, *, quality: int) -> Image.Image:
    file = BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")
