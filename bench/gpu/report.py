"""The card: what was found, as text for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.gpu.goals import beside, title

Row = dict[str, Any]

STAGES = {
    "vision": ("tiles", "ms_per_tile", "ms a tile"),
    "prefill": ("tokens", "tokens_per_s", "tokens/s"),
    "decode": ("rows", "tokens_per_s", "tokens/s"),
}
ANSWERS = {"ttft_ms": "ms to the first token", "images_per_s": "images/s"}
COLUMNS = ("model", "stage", "size", "vitrail", "torch", "compiled", "unit", "of the roofline")
ANSWER_COLUMNS = ("model", "tiles", "at once", "vitrail", "torch", "unit")


def card_text(card: dict[str, Any]) -> str:
    """Tables of the stages and of whole answers, then memory, the goals, and what there is no figure for."""
    rows = card["rows"]
    parts = [
        "\n".join(_run_line(card, run) for run in card["runs"]),
        table([COLUMNS, *_stage_lines(rows)]),
        table([ANSWER_COLUMNS, *_answer_lines(rows)]),
        *(
            f"parity with torch, {_title(row)}: {_cosines(row)}"
            for row in rows
            if row["stage"] == "parity" and row["who"] == "vitrail"
        ),
        *(f"memory, {_title(row)}: {_memory(row)}" for row in card["memory"]),
        table([("verdict", "goal (for one H100)", "wanted", "found"), *map(_goal_line, card["goals"])]),
        *(f"slower than torch: {each}" for each in card["goals"][-1]["slower"]),
        *(f"left out: {each['stage']}: {each['why']}" for each in card["left_out"]),
        *(f"FAILED: {each['stage']}: {each['why']}" for each in failures(card)),
    ]
    return "\n\n".join(part for part in parts if part)


def failures(card: dict[str, Any]) -> list[dict[str, str]]:
    """Stages that broke off, and contestants that failed within one."""
    within = [
        {"stage": f"{title(row)}, {row['who']}", "why": row["failure"]}
        for row in card["rows"]
        if "failure" in row
    ]
    return [*card["failures"], *within]


def of_vitrail(failure: dict[str, str]) -> bool:
    """Whether a failure is not the peer's."""
    return "torch" not in failure["stage"]


def _run_line(card: dict[str, Any], run: dict[str, Any]) -> str:
    roof = run.get("roofline")
    rates = "no roofline"
    if roof:
        rates = f"{_number(roof['copy_gb_s'])} GB/s copied, {_number(roof['matrix_tflop_s'])} TFLOP/s"
    return f"{card['device']['device']}, {run['started']}: {rates}"


def _goal_line(goal: dict[str, Any]) -> tuple[str, ...]:
    return goal["verdict"], goal["goal"], goal["wanted"], _number(goal["found"])


def _stage_lines(rows: list[Row]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        if row["who"] != "vitrail" or row["stage"] not in STAGES:
            continue
        size, figure, unit = STAGES[row["stage"]]
        peers = [beside(rows, row, who).get(figure) for who in ("torch", "torch compiled")]
        cells = [_number(value) for value in (row[figure], *peers)]
        share = f"{row['roofline_share']:.0%}" if "roofline_share" in row else ""
        yield (_title(row), row["stage"], f"{row[size]} {size}", *cells, unit, share)


def _answer_lines(rows: list[Row]) -> Iterator[tuple[str, ...]]:
    """Pictures per second at every concurrency; time to the first token where nobody waits for others."""
    for row in rows:
        if row["who"] != "vitrail" or row["stage"] != "answers":
            continue
        peer = beside(rows, row, "torch")
        for figure, unit in ANSWERS.items():
            if figure != "ttft_ms" or row["concurrency"] == 1:
                cells = (_number(row[figure]), _number(peer.get(figure)))
                yield (_title(row), str(row["tiles"]), str(row["concurrency"]), *cells, unit)


def _title(row: Row) -> str:
    return f"{row['model']} {row['precision']}"


def _cosines(row: Row) -> str:
    found = [
        f"{name.removesuffix('_cosine')} cosine {row[name]:.5f}" for name in row if name.endswith("_cosine")
    ]
    return ", ".join(found) or "finite, torch is not here"


def _memory(row: Row) -> str:
    return ", ".join(
        f"{name.removesuffix('_gib').replace('_', ' ')} {value:.2f} GiB"
        for name, value in row.items()
        if name.endswith("_gib")
    )


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(lines: list[tuple[str, ...]]) -> str:
    """Columns aligned; nothing where there is only a heading."""
    if len(lines) < 2:
        return ""
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    )
