"""What the figures of one stage say: each beside the fastest vitrail of its kind, and who wins. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

Row = Mapping[str, Any]
EQUAL_COSINE = 1e-5
GOALS = {"vision": 1.25, "prefill": 1.2, "decode": 1.2}
BATCHED_ROWS, BATCHED_GOAL = 8, 1.5


class Verdict(NamedTuple):
    """ratio: how many times as fast as the fastest peer ours is, the median over rounds; None without either."""

    what: str
    kind: str
    ours: str | None
    peer: str | None
    ratio: float | None
    wanted: float

    @property
    def met(self) -> bool:
        return self.ratio is not None and self.ratio >= self.wanted


def ratio(row: Row, reference: Row) -> float:
    """How many times as fast as the reference."""
    return median(theirs / own for own, theirs in zip(row["rounds_s"], reference["rounds_s"], strict=False))


def comparable(rows: Sequence[Row], row: Row) -> list[Row]:
    """Those of the same kind: for vision all, else those whose weights have as many bits; ours have none of 16, and
    are there compared by 8.
    """
    if row["kind"] == "vision":
        return list(rows)
    return [each for each in rows if min(each["bits"], 8) == min(row["bits"], 8)]


def fastest(rows: Sequence[Row], *, ours: bool) -> Row | None:
    measured = [row for row in rows if row["ours"] == ours and row.get("rounds_s")]
    return min(measured, key=lambda row: row["median_s"], default=None)


def verdicts(rows: Sequence[Row], cosine: Mapping[str, float]) -> list[Verdict]:
    """Of one stage's rows, for each kind of weights. In vision ours must be as exact as the peer, where that is known."""
    kinds = ["any"] if rows[0]["kind"] == "vision" else ["4 bits", "8 bits"]
    return [_verdict(kind, rows, cosine) for kind in kinds]


def _verdict(kind: str, stage: Sequence[Row], cosine: Mapping[str, float]) -> Verdict:
    rows = [row for row in stage if kind in ("any", f"{row['bits']} bits")]
    peer = fastest(rows, ours=False)
    if kind == "any" and peer is not None:
        least = cosine.get(peer["who"], 0.0) - EQUAL_COSINE
        rows = [row for row in rows if cosine.get(row["who"], 1.0) >= least]
    ours = fastest(rows, ours=True)
    batched = stage[0]["kind"] == "decode" and stage[0]["size"] >= BATCHED_ROWS
    return Verdict(
        what=stage[0]["what"],
        kind=kind,
        ours=ours["who"] if ours else None,
        peer=peer["who"] if peer else None,
        ratio=ratio(ours, peer) if ours and peer else None,
        wanted=BATCHED_GOAL if batched else GOALS[stage[0]["kind"]],
    )
