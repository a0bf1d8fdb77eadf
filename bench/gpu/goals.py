"""What the figures are to reach on one H100, and which stages are slower than PyTorch's eager SDPA beside them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

Row = dict[str, Any]

# The figure of each stage that is compared with the peer's, and whether more of it is better.
COMPARED = {
    "vision": {"ms_per_tile": False},
    "prefill": {"tokens_per_s": True},
    "decode": {"tokens_per_s": True},
    "answers": {"ttft_ms": False, "images_per_s": True},
}
SIZES = ("tiles", "tokens", "rows", "concurrency")
SHARES = {"fp16": 0.65, "int4": 0.45}
FIRST_TOKEN_MS = {"internvl2-2b": 45.0, "internvl3-8b": 110.0}
IMAGES_PER_S = {1: 60.0, 13: 6.0}


class Goal(NamedTuple):
    """What of which row is to be at most `limit`, or at least."""

    title: str
    row: Row
    figure: str
    limit: float
    at_least: bool = False

    def verdict(self, rows: list[Row]) -> dict[str, Any]:
        found = next((row[self.figure] for row in rows if self._is_in(row)), None)
        reached = found is not None and (found >= self.limit if self.at_least else found <= self.limit)
        verdict = "not measured" if found is None else "met" if reached else "missed"
        wanted = f"{'>=' if self.at_least else '<='} {self.limit:g}"
        return {"goal": self.title, "wanted": wanted, "found": found, "verdict": verdict}

    def _is_in(self, row: Row) -> bool:
        return row["who"] == "vitrail" and self.row.items() <= row.items() and self.figure in row


class Pair(NamedTuple):
    """The same stage of vitrail and of the peer: their figures, and whether one run has both."""

    title: str
    figure: str
    vitrail: float
    torch: float
    more_is_better: bool
    one_run: bool

    @property
    def is_slower(self) -> bool:
        return self.vitrail < self.torch if self.more_is_better else self.vitrail > self.torch

    def __str__(self) -> str:
        runs = "" if self.one_run else " (of different runs)"
        return f"{self.title}: {self.figure} {self.vitrail:g}, torch {self.torch:g}{runs}"


def verdicts(rows: list[Row]) -> list[dict[str, Any]]:
    """Of every goal: met, missed or not measured. Any stage slower than the peer misses the last."""
    pairs = list(compared(rows))
    slower = [pair for pair in pairs if pair.is_slower]
    verdict = "not measured" if not pairs else "missed" if slower else "met"
    last = {
        "goal": "no stage slower than PyTorch SDPA eager",
        "wanted": "0",
        "found": len(slower) if pairs else None,
        "verdict": verdict,
        "compared": len(pairs),
        "slower": list(map(str, slower)),
    }
    return [*(goal.verdict(rows) for goal in _goals()), last]


def compared(rows: list[Row]) -> Iterator[Pair]:
    """Every figure of vitrail that the peer has at the same size; the peer is the same at every precision of ours."""
    for row in rows:
        if row["who"] != "vitrail":
            continue
        peer = beside(rows, row, "torch")
        for figure, more_is_better in COMPARED.get(row["stage"], {}).items():
            if figure in row and figure in peer:
                one_run = row.get("run") == peer.get("run")
                yield Pair(title(row), figure, row[figure], peer[figure], more_is_better, one_run)


def beside(rows: list[Row], row: Row, who: str) -> Row:
    """What `who` did at a row's model, stage and size; empty where there is none."""
    names = ("model", "stage", *SIZES)
    same = (each for each in rows if all(each.get(name) == row.get(name) for name in names))
    return next((each for each in same if each["who"] == who), {})


def title(row: Row) -> str:
    sizes = ", ".join(f"{row[name]} {name}" for name in SIZES if name in row)
    return f"{row['model']} {row['precision']}: {row['stage']} {sizes}"


def _goals() -> Iterator[Goal]:
    for model in FIRST_TOKEN_MS:
        row = {"model": model, "stage": "vision", "tiles": 13}
        yield Goal(f"{model}: ms a tile at 13 tiles", row, "ms_per_tile", 2.0)
        for precision in SHARES:
            yield from _goals_of(model, precision)


def _goals_of(model: str, precision: str) -> Iterator[Goal]:
    subject = {"model": model, "precision": precision}
    first = {**subject, "stage": "answers", "tiles": 13, "concurrency": 1}
    name, limit_ms = f"{model} {precision}", FIRST_TOKEN_MS[model]
    yield Goal(f"{name}: ms to the first token, 13 tiles", first, "ttft_ms", limit_ms)
    step = {**subject, "stage": "decode", "rows": 1}
    yield Goal(
        f"{name}: decode of 1 row, of the roofline", step, "roofline_share", SHARES[precision], at_least=True
    )
    for tiles, limit in IMAGES_PER_S.items() if model == "internvl3-8b" else ():
        busy = {**subject, "stage": "answers", "tiles": tiles, "concurrency": 32}
        yield Goal(
            f"{name}: images/s at 32 at once, {tiles} tiles", busy, "images_per_s", limit, at_least=True
        )
