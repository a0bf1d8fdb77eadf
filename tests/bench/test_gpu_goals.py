"""The verdicts of the benchmark's card: goals met, missed, not measured; stages slower than the peer beside them."""

import pytest
from bench.gpu.goals import verdicts


def row(model, precision, stage, who="vitrail", **values):
    return {"model": model, "precision": precision, "stage": stage, "who": who, "run": 0, **values}


def verdict_of(rows, title):
    (found,) = [each["verdict"] for each in verdicts(rows) if each["goal"].startswith(title)]
    return found


@pytest.mark.parametrize(
    ("reached", "title", "values"),
    [
        ("met", "internvl2-2b: ms a tile", {"stage": "vision", "tiles": 13, "ms_per_tile": 2.0}),
        ("missed", "internvl2-2b: ms a tile", {"stage": "vision", "tiles": 13, "ms_per_tile": 2.1}),
        ("not measured", "internvl2-2b: ms a tile", {"stage": "vision", "tiles": 7, "ms_per_tile": 1.0}),
        ("met", "internvl2-2b fp16: decode", {"stage": "decode", "rows": 1, "roofline_share": 0.65}),
        ("missed", "internvl2-2b fp16: decode", {"stage": "decode", "rows": 1, "roofline_share": 0.64}),
        ("not measured", "internvl2-2b int4: decode", {"stage": "decode", "rows": 1, "roofline_share": 0.9}),
        ("missed", "internvl2-2b fp16: ms to the first", {"stage": "answers", "tiles": 13, "concurrency": 1, "ttft_ms": 46.0}),
    ],
)  # fmt: skip
def test_a_goal_is_met_missed_or_not_measured(reached, title, values):
    assert verdict_of([row("internvl2-2b", "fp16", **values)], title) == reached


def test_pictures_per_second_are_a_goal_of_the_large_model_at_both_sizes():
    sizes = {"stage": "answers", "concurrency": 32}
    rows = [
        row("internvl3-8b", "int4", **sizes, tiles=1, images_per_s=61.0),
        row("internvl3-8b", "int4", **sizes, tiles=13, images_per_s=5.0),
    ]
    assert verdict_of(rows, "internvl3-8b int4: images/s at 32 at once, 1 tiles") == "met"
    assert verdict_of(rows, "internvl3-8b int4: images/s at 32 at once, 13 tiles") == "missed"
    assert not [
        each for each in verdicts(rows) if "internvl2-2b" in each["goal"] and "images" in each["goal"]
    ]


SLOWER = "no stage slower"


def test_a_stage_slower_than_the_peer_is_listed_and_misses_the_goal():
    rows = [
        row("internvl2-2b", "int4", "prefill", tokens=2048, tokens_per_s=900.0),
        row("internvl2-2b", "fp16", "prefill", tokens=2048, tokens_per_s=1100.0),
        row("internvl2-2b", "fp16", "prefill", "torch", tokens=2048, tokens_per_s=1000.0),
        row("internvl2-2b", "fp16", "vision", tiles=1, ms_per_tile=4.0),
        row("internvl2-2b", "fp16", "vision", "torch", tiles=1, ms_per_tile=5.0),
        row("internvl2-2b", "fp16", "vision", "torch compiled", tiles=1, ms_per_tile=1.0),
    ]
    last = verdicts(rows)[-1]
    assert (last["verdict"], last["found"], last["compared"]) == ("missed", 1, 3)
    assert last["slower"] == ["internvl2-2b int4: prefill 2048 tokens: tokens_per_s 900, torch 1000"]
    assert verdict_of(rows[1:], SLOWER) == "met"


def test_only_what_the_peer_did_at_the_same_size_is_compared():
    rows = [
        row("internvl2-2b", "fp16", "answers", tiles=13, concurrency=32, images_per_s=1.0),
        row("internvl2-2b", "fp16", "answers", "torch", tiles=13, concurrency=8, images_per_s=2.0),
        row("internvl2-2b", "fp16", "decode", rows=8, tokens_per_s=1.0),
        row("internvl2-2b", "fp16", "decode", "torch", rows=8, failure="OutOfMemoryError: too large"),
    ]
    assert verdict_of(rows, SLOWER) == "not measured"


def test_a_comparison_over_two_runs_says_so():
    rows = [
        row("internvl2-2b", "fp16", "answers", tiles=1, concurrency=1, ttft_ms=9.0),
        row("internvl2-2b", "fp16", "answers", "torch", tiles=1, concurrency=1, ttft_ms=8.0) | {"run": 1},
    ]
    assert verdicts(rows)[-1]["slower"] == [
        "internvl2-2b fp16: answers 1 tiles, 1 concurrency: ttft_ms 9, torch 8 (of different runs)"
    ]
