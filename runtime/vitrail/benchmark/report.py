"""What a benchmark found: the card as a dict of plain values, tables for people, CSV for spreadsheets."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

from vitrail.benchmark.load import Tally
from vitrail.benchmark.measure import GAP_METRIC, METRICS, Sample, Summary, summarize

SUMMARY_COLUMNS = ("avg", "min", "max", "std", "p50", "p90", "p99")
SHOWN_COLUMNS = ("avg", "p50", "p90", "p99", "std")


class Objective(NamedTuple):
    """A service level: limits in ms on a request's time to first token and per output token; None for no limit."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None

    @property
    def is_set(self) -> bool:
        return self != (None, None)

    def met(self, sample: Sample) -> bool:
        """A failed request never meets it; one of a single token has no time per further token to exceed."""
        if sample.failure is not None or sample.ttft_ms is None:
            return False
        fast = self.ttft_ms is None or sample.ttft_ms <= self.ttft_ms
        return fast and (self.tpot_ms is None or (sample.tpot_ms or 0.0) <= self.tpot_ms)


def stage_fields(tally: Tally, objective: Objective) -> dict[str, Any]:
    """A stage as plain values. Metrics are those of answered requests; failed ones are counted by code beside them."""
    load, answered, failures = tally.load, tally.answered, tally.failures
    return {
        "title": load.title,
        "mode": load.mode,
        "concurrency": load.concurrency,
        "rate": load.rate,
        "warmup_requests": load.warmup,
        "is_warmup": load.is_warmup,
        "is_streams": bool(load.label),
        "ending": tally.ending,
        "duration_s": round(tally.duration_s, 6),
        "request_count": len(answered),
        "error_request_count": len(failures),
        "errors": tally.errors,
        "error_examples": {failure.code: failure.message for failure in reversed(failures)},
        "repeated_pictures": sum(sample.repeated for sample in tally.samples),
        "continued_conversations": sum(sample.turn > 1 for sample in tally.samples),
        "client_cpu_s": round(tally.client_cpu_s, 3),
        "client_wait_s": round(tally.waited_for_feed_s, 3),
        **_objective_fields(tally, objective),
        "metrics": metric_fields(tally),
    }


def metric_fields(tally: Tally) -> dict[str, dict[str, Any]]:
    """Each metric's unit and figures; one that no request has is left out."""
    answered, duration_s = tally.answered, tally.duration_s
    found = {metric.name: (metric.unit, summarize(_values(metric.value, answered))) for metric in METRICS}
    found[GAP_METRIC] = ("ms", summarize(tally.gaps.kept))
    fields = {name: {"unit": unit, **_rounded(summary)} for name, (unit, summary) in found.items() if summary}
    if answered and duration_s > 0:
        tokens = sum(sample.tokens for sample in answered)
        fields["output_token_throughput"] = {"unit": "tokens/sec", "avg": round(tokens / duration_s, 6)}
        fields["request_throughput"] = {"unit": "requests/sec", "avg": round(len(answered) / duration_s, 6)}
    return fields | _hit_rates(tally)


def _hit_rates(tally: Tally) -> dict[str, dict[str, Any]]:
    """Of all answered requests together: the shares of their tiles and of their prompts' tokens that caches knew."""
    reports = [sample.report for sample in tally.answered if sample.report is not None]
    found = {
        "feature_cache_hit_rate": (
            sum(report.reused_tiles for report in reports),
            sum(image.tiles for report in reports for image in report.images),
        ),
        "prefix_cache_hit_rate": (
            sum(report.reused_tokens for report in reports),
            sum(report.prompt_tokens for report in reports),
        ),
    }
    return {
        name: {"unit": "ratio", "avg": round(hits / asked, 6)}
        for name, (hits, asked) in found.items()
        if asked
    }


def _values(value: Any, samples: Iterable[Sample]) -> list[float]:
    return [found for sample in samples if (found := value(sample)) is not None]


def _rounded(summary: Summary) -> dict[str, float]:
    return {name: round(value, 6) for name, value in asdict(summary).items()}


def _objective_fields(tally: Tally, objective: Objective) -> dict[str, Any]:
    """Share and throughput of the requests that meet the objective; of all requests, failed ones too."""
    if not objective.is_set or not tally.samples:
        return {}
    good = sum(objective.met(sample) for sample in tally.samples)
    return {
        "good_request_count": good,
        "slo_share": round(good / len(tally.samples), 6),
        "goodput": round(good / tally.duration_s, 6) if tally.duration_s > 0 else 0.0,
    }


def stage_table(fields: dict[str, Any]) -> Table:
    """A stage's metrics, a row each, and its notes below."""
    table = _table(stage_title(fields))
    table.add_column("metric", no_wrap=True)
    for column in SHOWN_COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    hidden = {metric.name for metric in METRICS if not metric.shown}
    for name, metric in fields["metrics"].items():
        if name not in hidden:
            cells = [_cell(metric.get(column)) for column in SHOWN_COLUMNS]
            table.add_row(name, *cells, metric["unit"])
    table.show_header = bool(fields["metrics"])
    table.caption = "; ".join(stage_notes(fields))
    table.caption_justify = "left"
    return table


def stage_title(fields: dict[str, Any]) -> str:
    return f"{fields['title']}: {fields['request_count']} answered in {fields['duration_s']:.1f} s"


def stage_notes(fields: dict[str, Any]) -> list[str]:
    """What else there is to know: failures, how it ended, the objective, and whether the client was in the way."""
    notes = [f"{number} failed: {code}" for code, number in fields["errors"].items()]
    if fields["ending"] != "complete":
        notes.append(fields["ending"])
    if "slo_share" in fields:
        notes.append(
            f"{fields['slo_share']:.1%} within the objective, {fields['goodput']:.2f} good requests/s"
        )
    if fields["client_wait_s"] > 0.01 * fields["duration_s"]:
        notes.append(f"the client drew pictures for {fields['client_wait_s']:.1f} s while the load waited")
    return notes


def sweep_table(stages: Sequence[dict[str, Any]]) -> Table:
    """A row for each stage: throughput, and latencies in ms."""
    table = _table("Sweep, times in ms")
    table.add_column("load", no_wrap=True)
    for column in _SWEEP:
        table.add_column(column, justify="right")
    table.add_column("failed", justify="right")
    for fields in stages:
        metrics = fields["metrics"]
        cells = [_cell(metrics.get(name, {}).get(figure)) for name, figure in _SWEEP.values()]
        table.add_row(fields["title"], *cells, str(fields["error_request_count"]))
    return table


def _table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1)
    )


_SWEEP = {
    "req/s": ("request_throughput", "avg"),
    "tok/s": ("output_token_throughput", "avg"),
    "TTFT p50": ("time_to_first_token", "p50"),
    "TTFT p99": ("time_to_first_token", "p99"),
    "TPOT p50": ("time_per_output_token", "p50"),
    "TPOT p99": ("time_per_output_token", "p99"),
    "total p99": ("request_latency", "p99"),
}


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 1 else f"{value:.1f}"


def request_rows(tallies: Iterable[Tally]) -> list[dict[str, Any]]:
    """A row for each request, failed ones too: its stage, what it was, its metrics, its error."""
    return [
        {
            "stage": tally.load.title,
            "request": sample.ask,
            "turn": sample.turn,
            "repeated_picture": int(sample.repeated),
            "due_s": round(sample.due_s, 6),
            "started_s": round(sample.started_s, 6),
            "ended_s": round(sample.ended_s, 6),
            **{metric.name: _plain(metric.value(sample)) for metric in METRICS},
            "error": sample.failure.code if sample.failure else "",
            "error_message": sample.failure.message if sample.failure else "",
        }
        for tally in tallies
        for sample in sorted(tally.samples, key=lambda sample: sample.ask)
    ]


def summary_rows(stages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each metric of each stage."""
    return [
        {
            "stage": fields["title"],
            "metric": name,
            "unit": metric["unit"],
            **{column: metric.get(column) for column in SUMMARY_COLUMNS},
        }
        for fields in stages
        for name, metric in fields["metrics"].items()
    ]


def _plain(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """With a header line; an empty file where there are no rows."""
    with path.open("w", encoding="utf-8", newline="") as file:
        if rows:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
