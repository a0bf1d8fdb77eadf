"""The benchmark's card: figures with their rates and shares, kept from the first one on; failures told apart."""

import json
from datetime import datetime

import pytest
from bench.gpu.figures import Figures
from bench.gpu.models import Subject
from bench.gpu.plan import Outcome
from bench.gpu.report import card_text, failures, of_vitrail
from bench.gpu.timing import Series

SUBJECT = Subject("tiny", "int4")
HEADING = {"device": {"device": "some card"}, "vitrail": "0", "commit": "x", "sizes": {"tiles": (13, 1)}}
ROOF = {"copy_gb_s": 3000.0, "matrix_tflop_s": 700.0}


def begun(path, *, fresh=False, started="2026-11-28T01:00:00+00:00", **heading):
    run = {"started": started, "roofline": ROOF}
    return Figures(path, {**HEADING, **heading}, run, fresh=fresh)


@pytest.fixture
def figures(tmp_path):
    return begun(tmp_path / "card.json")


def fill(figures):
    figures.add_series(SUBJECT, "vision", {"tiles": 13}, "vitrail", Series((26.0, 13.0, 39.0)), floor_ms=6.5)
    figures.add_series(SUBJECT, "vision", {"tiles": 13}, "torch", Series((52.0,)), floor_ms=6.5)
    size = {"rows": 8, "past": 2048, "steps": 4}
    figures.add_series(SUBJECT, "decode", size, "vitrail", Series((20.0, 20.0)), floor_ms=10.0)
    figures.add_series(
        SUBJECT, "decode", size, "torch", Series(failure="OutOfMemoryError: too large"), floor_ms=1
    )
    figures.add(
        SUBJECT, "answers", {"tiles": 13, "concurrency": 32}, "vitrail", images_per_s=6.25, ttft_ms=900.0
    )
    figures.note(Outcome("tiny int4: vision 13", 1.5))
    figures.note(Outcome("tiny int4: prefill 3400", left_out="no time was left"))


def test_every_addition_is_in_the_file_at_once(figures):
    figures.add(SUBJECT, "answers", {"tiles": 1, "concurrency": 1}, "vitrail", ttft_ms=12.3456789)
    (row,) = json.loads(figures.path.read_text())["rows"]
    assert datetime.fromisoformat(row.pop("measured")).tzinfo
    assert row == {"model": "tiny", "precision": "int4", "stage": "answers", "tiles": 1, "concurrency": 1, "who": "vitrail", "ttft_ms": 12.346, "run": 0}  # fmt: skip


def test_rates_follow_from_the_median(figures):
    fill(figures)
    vision, _, decode = figures.rows[:3]
    assert (vision["ms"], vision["ms_low"], vision["ms_high"], vision["ms_per_tile"]) == (26, 13, 39, 2)
    assert vision["roofline_share"] == 0.25
    assert (decode["ms_per_step"], decode["tokens_per_s"], decode["roofline_share"]) == (5, 1600, 0.5)


def test_the_card_shows_each_stage_beside_the_peer_and_what_is_missing(figures):
    fill(figures)
    text = card_text(figures.card)
    assert "some card, 2026-11-28T01:00:00+00:00: 3,000 GB/s copied, 700 TFLOP/s" in text
    vision = next(line for line in text.splitlines() if "13 tiles" in line)
    assert vision.split()[:8] == ["tiny", "int4", "vision", "13", "tiles", "2", "4", "ms"]
    assert vision.rstrip().endswith("25%")
    assert "left out: tiny int4: prefill 3400: no time was left" in text
    assert "FAILED: tiny int4: decode 8 rows, torch: OutOfMemoryError: too large" in text


def test_the_card_shows_pictures_per_second_at_every_concurrency_and_the_verdicts(figures):
    fill(figures)
    size = {"tiles": 13, "concurrency": 1}
    figures.add(SUBJECT, "answers", size, "vitrail", images_per_s=2.5, ttft_ms=70.0)
    figures.add(SUBJECT, "answers", size, "torch", ttft_ms=60.0)
    lines = [line.split() for line in card_text(figures.card).splitlines()]
    assert ["tiny", "int4", "13", "1", "70", "60", "ms", "to", "the", "first", "token"] in lines
    assert ["tiny", "int4", "13", "1", "2.5", "images/s"] in lines
    assert ["tiny", "int4", "13", "32", "6.25", "images/s"] in lines
    text = card_text(figures.card)
    assert "not measured  internvl2-2b: ms a tile at 13 tiles" in text
    assert "missed        no stage slower than PyTorch SDPA eager" in text
    assert "slower than torch: tiny int4: answers 13 tiles, 1 concurrency: ttft_ms 70, torch 60" in text


def test_another_run_on_the_same_device_keeps_what_is_there_and_tells_the_runs_apart(figures):
    fill(figures)
    figures.note(Outcome("tiny int4: decode 8", 1.0, failure="RuntimeError: broke"))
    again = begun(figures.path, started="2026-11-28T02:00:00+00:00")
    done = ["tiny int4: vision 13", "tiny int4: prefill 3400", "tiny int4: decode 8"]
    assert [again.is_done(title) for title in done] == [True, False, False]
    again.note(Outcome("tiny int4: prefill 3400", 2.0))
    again.note(Outcome("tiny int4: decode 8", 2.0))
    again.add_series(SUBJECT, "prefill", {"tokens": 3400}, "vitrail", Series((10.0,)), floor_ms=5.0)
    assert all(again.is_done(title) for title in done)
    kept = json.loads(figures.path.read_text())
    assert [row["run"] for row in kept["rows"]] == [0, 0, 0, 0, 0, 1]
    assert [run["started"] for run in kept["runs"]] == [
        "2026-11-28T01:00:00+00:00",
        "2026-11-28T02:00:00+00:00",
    ]
    assert (kept["left_out"], kept["failures"]) == ([], [])


def test_what_is_measured_again_replaces_what_was_there(figures):
    fill(figures)
    again = begun(figures.path)
    size = {"rows": 8, "past": 2048, "steps": 4}
    again.add_series(SUBJECT, "decode", size, "torch", Series((8.0,)), floor_ms=1)
    found = [row for row in again.rows if (row["stage"], row["who"]) == ("decode", "torch")]
    assert [(row["ms"], row["run"], "failure" in row) for row in found] == [(8, 1, False)]


@pytest.mark.parametrize(
    "other", [{"commit": "y"}, {"device": {"device": "other card"}}, {"sizes": {"tiles": (7, 1)}}]
)
def test_figures_of_another_device_code_or_size_are_never_mixed(figures, other):
    fill(figures)
    assert begun(figures.path).rows
    again = begun(figures.path, **other)
    assert (again.rows, len(again.card["runs"])) == ([], 1)
    assert not again.is_done("tiny int4: vision 13")


def test_a_fresh_start_and_a_damaged_file_begin_anew(figures):
    fill(figures)
    assert begun(figures.path, fresh=True).rows == []
    figures.path.write_text("{ not a card")
    assert begun(figures.path).rows == []


def test_a_failure_of_the_peer_is_not_one_of_vitrail(figures):
    fill(figures)
    (peers,) = failures(figures.card)
    assert not of_vitrail(peers)
    figures.note(Outcome("tiny int4: decode 1", 0.1, failure="RuntimeError: broke"))
    assert [of_vitrail(each) for each in failures(figures.card)] == [True, False]
