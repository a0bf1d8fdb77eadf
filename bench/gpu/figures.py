"""What was found, as plain values: a row for each stage, size and contestant, kept in a file from the first one on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.gpu.models import Subject
from bench.gpu.plan import Outcome
from bench.gpu.timing import Series

Size = dict[str, int]
GIB = 2**30


class Figures:
    """Rows of a run. Every addition rewrites `path`, so that a run that is cut off keeps what it has."""

    def __init__(self, path: Path, card: dict[str, Any]) -> None:
        self.path = path
        self.card: dict[str, Any] = {
            **card,
            "rows": [],
            "memory": [],
            "left_out": [],
            "failures": [],
            "seconds": {},
        }

    @property
    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.card["rows"]
        return rows

    def add(self, subject: Subject, stage: str, size: Size, who: str, **values: Any) -> None:
        known = {name: _rounded(value) for name, value in values.items() if value is not None}
        row = {
            "model": subject.name,
            "precision": subject.precision,
            "stage": stage,
            **size,
            "who": who,
            **known,
        }
        self.rows.append(row)
        self.write()

    def add_series(
        self, subject: Subject, stage: str, size: Size, who: str, series: Series, *, floor_ms: float | None
    ) -> None:
        """Median, spread, rate, and the share of what the hardware allows."""
        if series.median_ms is None:
            self.add(subject, stage, size, who, failure=series.failure)
            return
        values = {"ms": series.median_ms, "ms_low": min(series.rounds_ms), "ms_high": max(series.rounds_ms)}
        values |= _rates(stage, size, series.median_ms)
        if floor_ms is not None:
            values |= {"floor_ms": floor_ms, "roofline_share": floor_ms / series.median_ms}
        self.add(subject, stage, size, who, **values)

    def add_memory(self, subject: Subject, **sizes_bytes: int) -> None:
        """GiB of: the artifacts, opening the sessions, everything after measuring, what is left after closing."""
        found = {f"{name}_gib": round(size / GIB, 3) for name, size in sizes_bytes.items()}
        self.card["memory"].append({"model": subject.name, "precision": subject.precision, **found})
        self.write()

    def note(self, outcome: Outcome) -> None:
        """How a stage went."""
        if outcome.left_out is not None:
            self.card["left_out"].append({"stage": outcome.title, "why": outcome.left_out})
        else:
            self.card["seconds"][outcome.title] = outcome.seconds
        if outcome.failure is not None:
            self.card["failures"].append({"stage": outcome.title, "why": outcome.failure})
        self.write()

    def write(self) -> None:
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text(json.dumps(self.card) + "\n", encoding="utf-8")
        partial.replace(self.path)


def _rates(stage: str, size: Size, milliseconds: float) -> dict[str, float]:
    if stage == "vision":
        return {"ms_per_tile": milliseconds / size["tiles"]}
    if stage == "prefill":
        return {"tokens_per_s": 1e3 * size["tokens"] / milliseconds}
    step_ms = milliseconds / size["steps"]
    return {"ms_per_step": step_ms, "tokens_per_s": 1e3 * size["rows"] / step_ms}


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value
