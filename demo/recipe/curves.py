"""Loss and accuracy over steps, drawn with PIL from the logs of the stages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from demo.recipe.render.fonts import face

WIDTH, HEIGHT, MARGIN = 640, 300, 46
INKS = (
    "#1f77b4",
    "#d62728",
    "#2ca02c",
    "#9467bd",
    "#ff7f0e",
    "#8c564b",
    "#e377c2",
    "#17becf",
    "#7f7f7f",
    "#bcbd22",
)
SMOOTHED_OVER = 5
Series = Mapping[str, Sequence[tuple[float, float]]]


def read_series(log: Path, names: Sequence[str] | None = None) -> dict[str, list[tuple[float, float]]]:
    """name -> (step, figure) of a stage's log; without names, all shares of right answer tokens."""
    skipped = {
        "seconds",
        "step",
        "samples",
        "loss",
        "named",
        "looked",
        "wanted",
        "linked",
        "counted",
        "code",
        "centres",
        "cover",
    }
    series: dict[str, list[tuple[float, float]]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        figures = json.loads(line)
        for name, figure in figures.items():
            if name in names if names is not None else name not in skipped:
                series.setdefault(name, []).append((figures["step"], figure))
    return series


def draw(panels: Sequence[tuple[str, Series]], path: Path) -> None:
    """One panel below the other, each with its title, its axes from 0 and a legend."""
    image = Image.new("RGB", (WIDTH, HEIGHT * len(panels)), "white")
    for at, (title, series) in enumerate(panels):
        _panel(ImageDraw.Draw(image), at * HEIGHT, title, series)
    image.save(path, optimize=True)


def _panel(pen: ImageDraw.ImageDraw, top: int, title: str, series: Series) -> None:
    font: ImageFont.FreeTypeFont = face("dejavu/DejaVuSans", 12)
    points = [point for line in series.values() for point in line]
    most_x = max((x for x, _ in points), default=1) or 1
    most_y = max((y for _, y in points), default=1) or 1
    left, bottom = MARGIN, top + HEIGHT - MARGIN
    right, upper = WIDTH - 150, top + 28
    pen.text((left, top + 6), title, font=font, fill="black")
    pen.line([(left, upper), (left, bottom), (right, bottom)], fill="black")
    for share in (0.0, 0.5, 1.0):
        x, y = left + share * (right - left), bottom - share * (bottom - upper)
        pen.text((x, bottom + 6), f"{share * most_x:,.0f}", font=font, fill="black", anchor="ma")
        pen.text((left - 6, y), f"{share * most_y:.2f}", font=font, fill="black", anchor="rm")
    pen.text(((left + right) / 2, bottom + 24), "steps", font=font, fill="black", anchor="ma")
    for at, (name, line) in enumerate(sorted(series.items())):
        ink = INKS[at % len(INKS)]
        places = [
            (left + x / most_x * (right - left), bottom - y / most_y * (bottom - upper))
            for x, y in _smooth(line)
        ]
        if len(places) > 1:
            pen.line(places, fill=ink, width=2)
        pen.text((right + 10, upper + 16 * at), name, font=font, fill=ink)


def _smooth(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means over SMOOTHED_OVER reports."""
    smoothed = []
    for at in range(len(line)):
        near = [y for _, y in line[max(0, at - SMOOTHED_OVER + 1) : at + 1]]
        smoothed.append((line[at][0], sum(near) / len(near)))
    return smoothed
