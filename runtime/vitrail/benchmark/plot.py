"""The figures of a sweep as PNG. matplotlib is loaded here only; `pip install "vitrail[bench]"` brings it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from vitrail.benchmark.measure import PHASES

# Okabe and Ito's palette, which colour-blind readers can tell apart.
_BLUE, _ORANGE, _GREEN, _PURPLE, _SKY, _GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#9A9A9A",
)
_INK = "#333333"
_PHASE_COLORS = {
    "schedule_lag_ms": _PURPLE,
    "preprocess_ms": _SKY,
    "vision_ms": _ORANGE,
    "queue_ms": _GREY,
    "prefill_ms": _BLUE,
    "other_ms": "#D9D9D9",
}


def write_plots(directory: Path, card: dict[str, Any]) -> list[Path]:
    """Draw what the card's stages give; the files written, none where no stage has an answer."""
    stages = [
        fields
        for fields in card["stages"]
        if fields["request_count"] and not (fields["is_warmup"] or fields.get("is_streams"))
    ]
    if not stages:
        return []
    directory.mkdir(parents=True, exist_ok=True)
    figures = {
        "latency-throughput.png": latency_figure(stages),
        "ttft-phases.png": phases_figure(stages),
    }
    for name, figure in figures.items():
        figure.text(0.01, 0.008, _footer(card), fontsize=7, color="#777777")
        figure.savefig(directory / name, dpi=160)
    return [directory / name for name in figures]


def latency_figure(stages: Sequence[dict[str, Any]]) -> Figure:
    """Time to first token and time per output token, p50 and p99, against output tokens per second."""
    figure = Figure(figsize=(10, 4.4), layout=ConstrainedLayoutEngine(rect=(0, 0.04, 1, 0.96)))
    left, right = figure.subplots(1, 2)
    _latency(left, stages, "time_to_first_token", title="Time to first token")
    _latency(right, stages, "time_per_output_token", title="Time per output token")
    return figure


def _latency(axes: Axes, stages: Sequence[dict[str, Any]], metric: str, *, title: str) -> None:
    points = [
        (
            fields["metrics"]["output_token_throughput"]["avg"],
            fields["metrics"][metric]["p50"],
            fields["metrics"][metric]["p99"],
            _load(fields),
        )
        for fields in stages
        if metric in fields["metrics"]
    ]
    if points:
        throughput, p50, p99, loads = zip(*points, strict=True)
        axes.plot(throughput, p99, color=_ORANGE, marker="o", markersize=5, linewidth=1.8, label="p99")
        axes.plot(throughput, p50, color=_BLUE, marker="o", markersize=5, linewidth=1.8, label="p50")
        for x, y, load in zip(throughput, p99, loads, strict=True):
            axes.annotate(
                load,
                (x, y),
                xytext=(-8, 2),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color=_INK,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8},
            )
        axes.legend(frameon=False, loc="upper left")
        axes.set_xlim(0, 1.15 * max(throughput))
        axes.set_ylim(0, 1.2 * max(p99))
    axes.set_xlabel("output tokens per second")
    axes.set_ylabel("milliseconds")
    _dress(axes, title)


def phases_figure(stages: Sequence[dict[str, Any]]) -> Figure:
    """The average time to first token of each load, stacked by phase."""
    height = 1.9 + 0.55 * len(stages)
    figure = Figure(figsize=(10, height), layout=ConstrainedLayoutEngine(rect=(0, 0.06, 1, 0.94)))
    axes = figure.subplots()
    names = [name for name in ("schedule_lag_ms", *PHASES, "other_ms") if _matters(stages, name)]
    done = [0.0] * len(stages)
    labels = [_load(fields) for fields in stages]
    for name in names:
        widths = [_average(fields, name) for fields in stages]
        title = name.removesuffix("_ms").replace("_", " ")
        axes.barh(
            labels, widths, left=done, color=_PHASE_COLORS[name], label=title, height=0.62, edgecolor="white"
        )
        done = [start + width for start, width in zip(done, widths, strict=True)]
    for row, total in enumerate(done):
        axes.annotate(
            f"{total:,.0f} ms",
            (total, row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=_INK,
        )
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds, average")
    axes.margins(x=0.1)
    axes.legend(frameon=False, ncols=len(names), loc="lower left", bbox_to_anchor=(0, 1), fontsize=9)
    _dress(axes, "")
    axes.grid(visible=False, axis="y")
    return figure


def _matters(stages: Sequence[dict[str, Any]], name: str) -> bool:
    """Whether a phase is wide enough anywhere to be seen."""
    return any(
        _average(fields, name) >= 0.002 * _average(fields, "time_to_first_token") > 0 for fields in stages
    )


def _average(fields: dict[str, Any], name: str) -> float:
    return float(fields["metrics"].get(name, {}).get("avg", 0.0))


def _load(fields: dict[str, Any]) -> str:
    return f"{fields['rate']:g}/s" if fields["rate"] else f"{fields['concurrency']} at once"


def _footer(card: dict[str, Any]) -> str:
    workload = card["workload"]
    sizes = [f"{width}x{height}" for width, height in workload["image_sizes"]]
    pictures = (
        f"pictures of {', '.join(sizes or map(str, workload['tiles']))} {'pixels' if sizes else 'tiles'}"
    )
    asked = f"{card['target'].get('name', '')}, {pictures}, {workload['output_tokens']} output tokens"
    return f"vitrail {card['vitrail']}; {asked}; {card['cpu']}, {card['cores']} cores"


def _dress(axes: Axes, title: str) -> None:
    if title:
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#BBBBBB")
    axes.tick_params(colors=_INK, labelsize=9)
    axes.grid(visible=True, color="#EEEEEE", linewidth=0.8)
    axes.set_axisbelow(True)
