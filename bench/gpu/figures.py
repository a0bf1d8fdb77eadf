"""What was found, as plain values: a row for each stage, size and contestant, kept in a file from the first one on."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench.gpu.goals import verdicts
from bench.gpu.models import Subject
from bench.gpu.plan import Outcome
from bench.gpu.timing import Series

Size = dict[str, int]
GIB = 2**30


class Figures:
    """Rows of a run, and of earlier runs in the same file. Every addition rewrites it, so that a run that is cut off keeps
    what it has.

    What `path` has is kept where its heading is the same: same device, versions, code and sizes. Rows say in which of
    `runs` and when they were measured; a new one replaces what was measured at the same size.
    """

    def __init__(
        self, path: Path, heading: dict[str, Any], run: dict[str, Any], *, fresh: bool = False
    ) -> None:
        self.path = path
        lists: dict[str, Any] = {
            name: [] for name in ("goals", "runs", "rows", "memory", "left_out", "failures")
        }
        self.card: dict[str, Any] = {**heading, **lists, "seconds": {}}
        if not fresh:
            self.card |= _of_before(path, heading)
        self.run = run
        self.card["runs"].append(run)

    @property
    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.card["rows"]
        return rows

    def is_done(self, title: str) -> bool:
        """Whether a stage ran to its end, in this run or before."""
        broken = any(each["stage"] == title for each in self.card["failures"])
        return title in self.card["seconds"] and not broken

    def add(self, subject: Subject, stage: str, size: Size, who: str, **values: Any) -> None:
        known = {name: _rounded(value) for name, value in values.items() if value is not None}
        row = {**_names(subject), "stage": stage, **size, "who": who}
        others = [each for each in self.rows if not row.items() <= each.items()]
        self.card["rows"] = [*others, {**row, **known, **self._when()}]
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
        self.card["memory"].append({**_names(subject), **found, **self._when()})
        self.write()

    def note(self, outcome: Outcome) -> None:
        """How a stage went, in place of how it went before."""
        for name in ("left_out", "failures"):
            self.card[name] = [each for each in self.card[name] if each["stage"] != outcome.title]
        if outcome.left_out is not None:
            self.card["left_out"].append({"stage": outcome.title, "why": outcome.left_out})
        else:
            self.card["seconds"][outcome.title] = outcome.seconds
        if outcome.failure is not None:
            self.card["failures"].append({"stage": outcome.title, "why": outcome.failure})
        self.write()

    def write(self) -> None:
        self.card["goals"] = verdicts(self.rows)
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text(json.dumps(self.card) + "\n", encoding="utf-8")
        partial.replace(self.path)

    def _when(self) -> dict[str, Any]:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return {"run": len(self.card["runs"]) - 1, "measured": now}


def _of_before(path: Path, heading: dict[str, Any]) -> dict[str, Any]:
    """The card at `path`; nothing where there is none, or one of something else."""
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    same = isinstance(card, dict) and json.loads(json.dumps(heading)).items() <= card.items()
    return card if same else {}


def _names(subject: Subject) -> dict[str, str]:
    return {"model": subject.name, "precision": subject.precision}


def _rates(stage: str, size: Size, milliseconds: float) -> dict[str, float]:
    if stage == "vision":
        return {"ms_per_tile": milliseconds / size["tiles"]}
    if stage == "prefill":
        return {"tokens_per_s": 1e3 * size["tokens"] / milliseconds}
    step_ms = milliseconds / size["steps"]
    return {"ms_per_step": step_ms, "tokens_per_s": 1e3 * size["rows"] / step_ms}


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value
