"""The benchmark's card: figures with their rates and shares, kept from the first one on; failures told apart."""

import json

import pytest
from bench.gpu.figures import Figures
from bench.gpu.models import Subject
from bench.gpu.plan import Outcome
from bench.gpu.report import card_text, failures, of_vitrail
from bench.gpu.timing import Series

SUBJECT = Subject("tiny", "int4")
DEVICE = {"device": {"device": "some card"}, "roofline": {"copy_gb_s": 3000.0, "matrix_tflop_s": 700.0}}


@pytest.fixture
def figures(tmp_path):
    return Figures(tmp_path / "card.json", {**DEVICE, "vitrail": "0", "commit": "x"})


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
    assert row == {"model": "tiny", "precision": "int4", "stage": "answers", "tiles": 1, "concurrency": 1, "who": "vitrail", "ttft_ms": 12.346}  # fmt: skip


def test_rates_follow_from_the_median(figures):
    fill(figures)
    vision, _, decode = figures.rows[:3]
    assert (vision["ms"], vision["ms_low"], vision["ms_high"], vision["ms_per_tile"]) == (26, 13, 39, 2)
    assert vision["roofline_share"] == 0.25
    assert (decode["ms_per_step"], decode["tokens_per_s"], decode["roofline_share"]) == (5, 1600, 0.5)


def test_the_card_shows_each_stage_beside_the_peer_and_what_is_missing(figures):
    fill(figures)
    text = card_text(figures.card)
    assert "some card: 3,000 GB/s copied, 700 TFLOP/s" in text
    vision = next(line for line in text.splitlines() if "13 tiles" in line)
    assert vision.split()[:8] == ["tiny", "int4", "vision", "13", "tiles", "2", "4", "ms"]
    assert vision.rstrip().endswith("25%")
    assert "left out: tiny int4: prefill 3400: no time was left" in text
    assert "FAILED: tiny int4: decode 8 rows, torch: OutOfMemoryError: too large" in text


def test_a_failure_of_the_peer_is_not_one_of_vitrail(figures):
    fill(figures)
    (peers,) = failures(figures.card)
    assert not of_vitrail(peers)
    figures.note(Outcome("tiny int4: decode 1", 0.1, failure="RuntimeError: broke"))
    assert [of_vitrail(each) for each in failures(figures.card)] == [True, False]
