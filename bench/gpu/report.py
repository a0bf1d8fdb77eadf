"""The card: what was found, as text for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]

STAGES = {
    "vision": ("tiles", "ms_per_tile", "ms a tile"),
    "prefill": ("tokens", "tokens_per_s", "tokens/s"),
    "decode": ("rows", "tokens_per_s", "tokens/s"),
}
COLUMNS = ("model", "stage", "size", "vitrail", "torch", "compiled", "unit", "of the roofline")


def card_text(card: dict[str, Any]) -> str:
    """Tables of the stages and of whole answers, then memory and what there is no figure for."""
    roof = card["roofline"]
    parts = [
        f"{card['device']['device']}: {_number(roof.get('copy_gb_s'))} GB/s copied, {_number(roof.get('matrix_tflop_s'))} TFLOP/s",
        table([COLUMNS, *_stage_lines(card["rows"])]),
        table(
            [
                ("model", "tiles", "at once", "figure", "vitrail", "torch", "unit"),
                *_answer_lines(card["rows"]),
            ]
        ),
        *(
            f"parity with torch, {_title(row)}: {_cosines(row)}"
            for row in card["rows"]
            if row["stage"] == "parity"
        ),
        *(f"memory, {_title(row)}: {_memory(row)}" for row in card["memory"]),
        *(f"left out: {each['stage']}: {each['why']}" for each in card["left_out"]),
        *(f"FAILED: {each['stage']}: {each['why']}" for each in failures(card)),
    ]
    return "\n\n".join(part for part in parts if part)


def failures(card: dict[str, Any]) -> list[dict[str, str]]:
    """Stages that broke off, and contestants that failed within one."""
    within = [
        {"stage": f"{_title(row)}: {row['stage']} {_size(row)}, {row['who']}", "why": row["failure"]}
        for row in card["rows"]
        if "failure" in row
    ]
    return [*card["failures"], *within]


def of_vitrail(failure: dict[str, str]) -> bool:
    """Whether a failure is not the peer's."""
    return "torch" not in failure["stage"]


def _stage_lines(rows: list[Row]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        if row["who"] != "vitrail" or row["stage"] not in STAGES or "failure" in row:
            continue
        size, figure, unit = STAGES[row["stage"]]
        peers = [_found(rows, row, size, who).get(figure) for who in ("torch", "torch compiled")]
        cells = [_number(value) for value in (row[figure], *peers)]
        share = f"{row['roofline_share']:.0%}" if "roofline_share" in row else ""
        yield (_title(row), row["stage"], f"{row[size]} {size}", *cells, unit, share)


def _answer_lines(rows: list[Row]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        if row["who"] != "vitrail" or row["stage"] != "answers" or "failure" in row:
            continue
        alone = row["concurrency"] == 1
        figure, unit = ("ttft_ms", "ms to the first token") if alone else ("images_per_s", "images/s")
        peer = next(
            (
                each[figure]
                for each in rows
                if _same(each, row, "tiles") and each["who"] == "torch" and figure in each
            ),
            None,
        )
        cells = (_number(row[figure]), _number(peer))
        yield (_title(row), str(row["tiles"]), str(row["concurrency"]), figure, *cells, unit)


def _found(rows: list[Row], row: Row, size: str, who: str) -> Row:
    return next((each for each in rows if _same(each, row, size) and each["who"] == who), {})


def _same(each: Row, row: Row, size: str) -> bool:
    """The same model and stage; the peer is the same at every precision of ours."""
    return all(each.get(name) == row[name] for name in ("model", "stage", size))


def _title(row: Row) -> str:
    return f"{row['model']} {row['precision']}"


def _size(row: Row) -> str:
    return ", ".join(
        f"{row[name]} {name}" for name in ("tiles", "tokens", "rows", "concurrency") if name in row
    )


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
