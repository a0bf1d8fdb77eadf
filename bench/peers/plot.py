"""One figure of a card: a panel for each stage, a bar for each contestant. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

OURS, PEER, LIMIT = "#0072B2", "#B9C4CC", "#333333"
COLUMNS = 3


def write_plot(path: Path, card: dict[str, Any]) -> bool:
    """False where there is nothing to draw."""
    rows = card["rows"]
    stages = list(dict.fromkeys(row["what"] for row in rows))
    if not stages:
        return False
    lines = -(-len(stages) // COLUMNS)
    most = max(sum(row["what"] == what for row in rows) for what in stages)
    layout = ConstrainedLayoutEngine(rect=(0, 0.02, 1, 0.98))
    figure = Figure(figsize=(13, 0.8 + lines * (0.7 + 0.27 * most)), layout=layout)
    grid = list(figure.subplots(lines, COLUMNS, squeeze=False).flat)
    for axes, what in zip(grid, stages, strict=False):
        _draw(axes, [row for row in rows if row["what"] == what], what)
    for axes in grid[len(stages) :]:
        axes.set_axis_off()
    depth = f"{card['layers']} layers of each tower" if card["layers"] else "full depth"
    where = f"{card['cpu']}, {card['cores']} cores; {card['model']}, {depth}; vitrail {card['commit']}"
    figure.text(0.01, 0.004, f"{where}. A mark is the limit by the machine's measured rates.", fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return True


def _draw(axes: Any, rows: list[dict[str, Any]], what: str) -> None:
    slower_is_more = rows[0]["kind"] == "vision"
    ordered = sorted(rows, key=lambda row: row["speed"], reverse=not slower_is_more)
    places = range(len(ordered))
    speeds = [row["speed"] for row in ordered]
    axes.barh(places, speeds, color=[OURS if row["ours"] else PEER for row in ordered], height=0.7)
    for place, row in zip(places, ordered, strict=True):
        share = row["limit_share"]
        limit = row["speed"] * share if slower_is_more else row["speed"] / share
        if limit <= 2 * max(speeds):
            axes.vlines(limit, place - 0.4, place + 0.4, colors=LIMIT, linewidth=1)
        axes.text(
            row["speed"],
            place,
            f" {row['speed']:.{0 if row['speed'] >= 100 else 1}f}",
            va="center",
            fontsize=7,
        )
    axes.set_yticks(places, [row["who"] for row in ordered], fontsize=7)
    axes.invert_yaxis()
    axes.set_title(f"{what}: {rows[0]['unit']}", loc="right", fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
