"""One figure of a card: every stage beside PyTorch and the roofline. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

COLORS = {"vitrail": "#0072B2", "torch": "#E69F00", "torch compiled": "#009E73"}
ROOF = "#333333"
PANELS = (
    ("vision", "tiles", "ms_per_tile"),
    ("prefill", "tokens", "tokens_per_s"),
    ("decode", "rows", "tokens_per_s"),
)
LABELS = {"ms_per_tile": "ms a tile", "tokens_per_s": "tokens a second"}


def write_plot(path: Path, card: dict[str, Any]) -> bool:
    """A row of panels for each model and precision; False where there is nothing to draw."""
    stages = [stage for stage, _, _ in PANELS]
    rows = [row for row in card["rows"] if row["stage"] in stages and "failure" not in row]
    subjects = list(dict.fromkeys((row["model"], row["precision"]) for row in rows))
    if not subjects:
        return False
    size = (11, 0.6 + 2.6 * len(subjects))
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(rect=(0, 0.03, 1, 0.97)))
    grid = figure.subplots(len(subjects), len(PANELS), squeeze=False)
    for line, subject in zip(grid, subjects, strict=True):
        for axes, panel in zip(line, PANELS, strict=True):
            _draw(axes, [row for row in rows if (row["model"], row["precision"]) == subject], *panel)
            axes.set_title(f"{subject[0]} {subject[1]}: {panel[0]}", loc="left", fontsize=9)
    handles: list[Any] = [Patch(color=color, label=who) for who, color in COLORS.items()]
    handles.append(Line2D([], [], color=ROOF, linestyle="dashed", linewidth=1, label="roofline"))
    figure.legend(handles=handles, loc="outside upper right", ncols=4, frameon=False, fontsize=8)
    figure.text(
        0.01, 0.004, f"{card['device']['device']}; vitrail {card['vitrail']}, {card['commit']}", fontsize=7
    )
    figure.savefig(path, dpi=150)
    return True


def _draw(axes: Any, rows: list[dict[str, Any]], stage: str, size: str, figure: str) -> None:
    found = [row for row in rows if row["stage"] == stage]
    sizes = sorted({row[size] for row in found})
    for at, (who, color) in enumerate(COLORS.items()):
        mine = {row[size]: row for row in found if row["who"] == who}
        places = [place + 0.27 * (at - 1) for place, each in enumerate(sizes) if each in mine]
        axes.bar(places, [mine[each][figure] for each in sizes if each in mine], 0.25, color=color, label=who)
    _roof(axes, {row[size]: row for row in found if row["who"] == "vitrail"}, sizes, figure)
    axes.set_xticks(range(len(sizes)), [f"{each} {size}" for each in sizes], fontsize=8)
    axes.set_ylabel(LABELS[figure], fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _roof(axes: Any, rows: dict[int, dict[str, Any]], sizes: list[int], figure: str) -> None:
    """What the hardware allows, as a line over each size."""
    for place, each in enumerate(sizes):
        row = rows.get(each, {})
        if "roofline_share" in row:
            share = row["roofline_share"]
            limit = row[figure] * share if figure.startswith("ms") else row[figure] / share
            axes.hlines(limit, place - 0.42, place + 0.42, colors=ROOF, linestyles="dashed", linewidth=1)
