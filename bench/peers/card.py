"""What was found, kept in a file from the first stage on; a run of some stages leaves the others as they are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from bench.peers.contest import STAGES, Entry, Stage
from bench.peers.contestants import Ring
from bench.peers.limits import least_seconds
from bench.peers.rounds import Turns, merged
from bench.peers.verdict import Verdict, comparable, fastest, ratio, verdicts

from vitrail.benchmark.device import device_fields
from vitrail_export.config import ModelConfig

GIB = 2**30
COLUMNS = ("what", "who", "speed", "ratio", "limit", "memory", "accuracy")
HEADINGS = ("measured", "by", "speed", "to vitrail", "of the limit", "peak memory", "accuracy")


class Card:
    def __init__(
        self, path: Path, *, name: str, layers: int, threads: int, config: ModelConfig, rounds: int
    ) -> None:
        self._path = path
        self._config = config
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.fields: dict[str, Any] = {
            "bench": "peers",
            **device_fields(),
            "model": name,
            "layers": layers or None,
            "threads": threads,
            "runs": known.get("runs", []),
            "contestants": known.get("contestants", {}),
            "rows": known.get("rows", []),
        }
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._run = {"started": started, "commit": self.fields["commit"], "rounds": rounds, "stages": []}
        self.fields["runs"].append(self._run)

    @property
    def ours_failed(self) -> bool:
        contestants = self.fields["contestants"].values()
        return any(
            "failure" in each
            for part in contestants
            for name, each in part.items()
            if name.startswith("vitrail")
        )

    def add(self, stage: Stage, entries: Sequence[Entry], turns: Turns) -> None:
        rows = [self._row(stage, entry, turns) for entry in entries if turns.samples.get(entry.name)]
        order = {each.what: at for at, each in enumerate(STAGES)}
        self.fields["rows"] = sorted(merged(self.fields["rows"], rows), key=lambda row: order[row["what"]])
        self._run["stages"].append(stage.what)
        self._write()

    def note(
        self, ring: Ring, entries: Sequence[Entry], accuracies: Mapping[str, Mapping[str, float]]
    ) -> None:
        """Memory, versions, accuracy and failures of a part's contestants."""
        part = self.fields["contestants"].setdefault(ring.part, {})
        for entry in entries:
            found = dict(part.get(entry.name, {}))
            found.pop("failure", None)
            if entry.name in ring.versions:
                found["versions"] = ring.versions[entry.name]
            if peak := ring.peaks_bytes.get(entry.name):
                found["peak_gib"] = max(found.get("peak_gib", 0), round(peak / GIB, 2))
            found |= {name: round(value, 6) for name, value in accuracies.get(entry.name, {}).items()}
            if entry.name in ring.failures:
                found["failure"] = ring.failures[entry.name]
            part[entry.name] = found
        self._write()

    def finish(self, *, plots: Path | None) -> None:
        self.fields["table"] = [self._shown(row) for row in self.fields["rows"]] + self._not_measured()
        found = [verdict for rows in self._by_stage() for verdict in verdicts(rows, self._cosines())]
        self.fields["verdicts"] = [{**each._asdict(), "met": each.met} for each in found]
        self._write()
        if plots is not None and find_spec("matplotlib"):
            from bench.peers.plot import write_plot  # noqa: PLC0415

            write_plot(plots / f"{self._path.stem}.png", self.fields)

    def text(self) -> str:
        """The table, with who could not be measured, then who wins by how much."""
        lines = [HEADINGS, *([row[column] for column in COLUMNS] for row in self.fields["table"])]
        widths = [max(len(line[at]) for line in lines) for at in range(len(COLUMNS))]
        table = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
        ]
        won = [
            verdict_text(Verdict(**{k: v for k, v in each.items() if k != "met"}))
            for each in self.fields["verdicts"]
        ]
        return "\n".join([*table, "", *won])

    def _row(self, stage: Stage, entry: Entry, turns: Turns) -> dict[str, Any]:
        samples, seconds = turns.samples[entry.name], turns.seconds(entry.name)
        matrix, read = median(s.matrix_tflop_s for s in samples), median(s.read_gb_s for s in samples)
        least = least_seconds(self._config, stage, entry, matrix_tflop_s=matrix, read_gb_s=read)
        return {
            "what": stage.what,
            "kind": stage.kind,
            "size": stage.size,
            "who": entry.name,
            "precision": entry.precision,
            "bits": entry.bits,
            "ours": entry.ours,
            "rounds_s": [_short(each) for each in seconds],
            "median_s": _short(median(seconds)),
            "speed": _short(stage.speed(median(seconds))),
            "unit": stage.unit,
            "limit_share": _short(least / median(seconds)),
            "matrix_tflop_s": _short(matrix),
            "read_gb_s": _short(read),
            "others_cpu_share": _short(max(s.others_cpu_share for s in samples)),
        }

    def _shown(self, row: Mapping[str, Any]) -> dict[str, str]:
        rivals = [each for each in self.fields["rows"] if each["what"] == row["what"]]
        reference = fastest(comparable(rivals, row), ours=True)
        about = self._about(row)
        return {
            "what": row["what"],
            "who": row["who"],
            "speed": f"{row['speed']:.{0 if row['speed'] >= 100 else 1}f} {row['unit']}",
            "ratio": f"{ratio(row, reference):.2f}" if reference else "",
            "limit": f"{row['limit_share']:.0%}",
            "memory": f"{about['peak_gib']:.2f} GiB" if "peak_gib" in about else "",
            "accuracy": accuracy_text(about),
        }

    def _not_measured(self) -> list[dict[str, str]]:
        return [
            {
                **dict.fromkeys(COLUMNS, ""),
                "what": f"{part}: not measured",
                "who": name,
                "speed": each["failure"],
            }
            for part, contestants in self.fields["contestants"].items()
            for name, each in contestants.items()
            if "failure" in each
        ]

    def _about(self, row: Mapping[str, Any]) -> dict[str, Any]:
        part = "vision" if row["kind"] == "vision" else "language"
        found: dict[str, Any] = self.fields["contestants"].get(part, {}).get(row["who"], {})
        return found

    def _cosines(self) -> dict[str, float]:
        vision = self.fields["contestants"].get("vision", {})
        return {name: each["embeds_cosine"] for name, each in vision.items() if "embeds_cosine" in each}

    def _by_stage(self) -> list[list[dict[str, Any]]]:
        rows = self.fields["rows"]
        return [
            [row for row in rows if row["what"] == what]
            for what in dict.fromkeys(row["what"] for row in rows)
        ]

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_name(self._path.name + ".partial")
        partial.write_text(json.dumps(self.fields) + "\n", encoding="utf-8")
        partial.replace(self._path)


def accuracy_text(about: Mapping[str, Any]) -> str:
    if "embeds_cosine" in about:
        return f"{about['embeds_cosine']:.5f}"
    logits = [f"{about['logits_cosine']:.4f}"] if "logits_cosine" in about else []
    first = [f"{about['first_token_share']:.0%}"] if "first_token_share" in about else []
    return ", ".join(logits + first)


def verdict_text(verdict: Verdict) -> str:
    kind = "" if verdict.kind == "any" else f", {verdict.kind}"
    if verdict.ratio is None:
        missing = "vitrail" if verdict.ours is None else "peer"
        return f"?      {verdict.what}{kind}: no {missing} of this kind to compare"
    mark = "met   " if verdict.met else "missed"
    return (
        f"{mark} {verdict.what}{kind}: {verdict.ours} is {verdict.ratio:.2f}x {verdict.peer} "
        f"(wanted {verdict.wanted}x)"
    )


def _short(value: float) -> float:
    return float(f"{value:.5g}")
