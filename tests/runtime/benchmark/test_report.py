import csv
import json

import pytest
from rich.console import Console
from tests.runtime.benchmark.fakes import Answers, FakeClock, asks

from vitrail.benchmark.load import Load, Stage
from vitrail.benchmark.report import (
    Objective,
    request_rows,
    stage_fields,
    stage_table,
    summary_rows,
    sweep_table,
    write_csv,
)
from vitrail.errors import Busy, ServerError

NO_OBJECTIVE = Objective()


def tally(*scripts, requests=4, **load):
    clock = FakeClock()
    load = Load(**{"concurrency": 1, "requests": requests, **load})
    return Stage(Answers(clock, *scripts), asks(), load, clock=clock).run()


def printed(table):
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_throughput_is_over_the_time_from_the_first_question_to_the_last_answer():
    fields = stage_fields(tally([0.5, 0.25, 0.25]), NO_OBJECTIVE)
    assert fields["duration_s"] == 4
    assert fields["metrics"]["request_throughput"] == {"unit": "requests/sec", "avg": 1}
    assert fields["metrics"]["output_token_throughput"] == {"unit": "tokens/sec", "avg": 3}
    assert fields["metrics"]["inter_chunk_latency"]["count"] == 8


def test_what_caches_knew_is_a_share_of_all_tiles_and_prompt_tokens():
    metrics = stage_fields(tally([0.5]), NO_OBJECTIVE)["metrics"]
    assert metrics["feature_cache_hit_rate"] == {"unit": "ratio", "avg": 1}
    assert metrics["prefix_cache_hit_rate"] == {"unit": "ratio", "avg": 0.75}
    assert metrics["reused_tiles"]["avg"] == 7


def test_failures_are_beside_the_metrics_not_in_them():
    fields = stage_fields(tally([0.5, 0.5], Busy("queue full"), requests=6), NO_OBJECTIVE)
    assert (fields["request_count"], fields["error_request_count"]) == (3, 3)
    assert (fields["errors"], fields["error_examples"]) == ({"busy": 3}, {"busy": "queue full"})
    assert fields["metrics"]["request_latency"]["count"] == 3
    assert "3 failed: busy" in printed(stage_table(fields))


def test_the_share_within_an_objective_is_of_all_requests():
    objective = Objective(ttft_ms=500, tpot_ms=300)
    scripts = ([0.5, 0.3], [0.6, 0.1], [0.1, 0.4], Busy("full"))
    fields = stage_fields(tally(*scripts, requests=8), objective)
    assert (fields["good_request_count"], fields["slo_share"]) == (2, 0.25)
    assert fields["goodput"] == pytest.approx(2 / fields["duration_s"], rel=1e-3)


def test_a_stage_of_failures_alone_still_has_a_report():
    failed = tally(ServerError("gone"), requests=3)
    fields = stage_fields(failed, Objective(ttft_ms=1))
    assert (fields["metrics"], fields["slo_share"]) == ({}, 0)
    assert "concurrency 1: 0 answered" in printed(stage_table(fields))
    assert [row["error"] for row in request_rows([failed])] == ["server"] * 3


def test_tables_fit_a_terminal_of_80_columns():
    fields = stage_fields(tally([0.5, 0.5], concurrency=1), NO_OBJECTIVE)
    text = printed(stage_table(fields)) + printed(sweep_table([fields, fields]))
    assert "…" not in text
    assert "time_to_first_token" in text
    assert "req/s" in text


def test_a_row_of_csv_for_each_request_and_for_each_metric(tmp_path):
    found = tally([0.5, 0.5], Busy("full, try, later"))
    write_csv(tmp_path / "requests.csv", request_rows([found]))
    write_csv(tmp_path / "summary.csv", summary_rows([stage_fields(found, NO_OBJECTIVE)]))
    requests = list(csv.DictReader((tmp_path / "requests.csv").open(encoding="utf-8")))
    assert [row["error"] for row in requests] == ["", "busy", "", "busy"]
    assert requests[0]["time_to_first_token"] == "500.0"
    summary = {
        row["metric"]: row for row in csv.DictReader((tmp_path / "summary.csv").open(encoding="utf-8"))
    }
    assert summary["request_latency"]["p99"] == "1000.0"


def card(stages):
    workload = {"image_sizes": [], "tiles": [1, 7], "output_tokens": 8}
    target = {"name": "tiny"}
    return {"stages": stages, "workload": workload, "target": target, "vitrail": "1", "cpu": "x", "cores": 2}


def test_figures_are_written_as_png(tmp_path):
    from vitrail.benchmark.plot import write_plots

    stages = [stage_fields(tally([0.5, pause_s]), NO_OBJECTIVE) for pause_s in (0.2, 0.3)]
    files = write_plots(tmp_path / "new", json.loads(json.dumps(card(stages))))
    assert sorted(file.name for file in files) == ["latency-throughput.png", "ttft-phases.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 10_000 for file in files)


def test_no_figure_is_drawn_of_failures_alone_and_one_token_answers_are_no_obstacle(tmp_path):
    from vitrail.benchmark.plot import write_plots

    failed = stage_fields(tally(ServerError("gone")), NO_OBJECTIVE)
    assert write_plots(tmp_path / "none", card([failed])) == []
    assert len(write_plots(tmp_path / "some", card([stage_fields(tally([0.5]), NO_OBJECTIVE)]))) == 2
