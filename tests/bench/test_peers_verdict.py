"""Who is compared with whom, and what is made of it."""

from statistics import median

import numpy as np
import pytest
from bench.peers.accuracy import accuracy
from bench.peers.verdict import comparable, ratio, verdicts


def row(who, rounds_s, *, kind="decode", bits=4, size=1):
    ours = who.startswith("vitrail")
    return {
        "what": f"{kind} {size}",
        "kind": kind,
        "size": size,
        "who": who,
        "bits": bits,
        "ours": ours,
        "rounds_s": rounds_s,
        "median_s": median(rounds_s),
    }


def test_a_ratio_is_the_median_of_those_of_each_round_not_of_medians():
    one, other = row("a", [1, 10, 2]), row("b", [2, 5, 8])
    assert ratio(one, other) == 2
    assert ratio(other, one) == 0.5
    assert median([2, 5, 8]) / median([1, 10, 2]) == 2.5


def test_only_weights_of_as_many_bits_are_compared():
    rows = [
        row("vitrail int4", [2.0]),
        row("vitrail int8", [3.0], bits=8),
        row("llama.cpp Q4_0", [3.0]),
        row("llama.cpp Q8_0", [3.3], bits=8),
        row("transformers bf16", [1.0], bits=16),
    ]
    four, eight = verdicts(rows, {})
    assert (four.ours, four.peer, four.ratio) == ("vitrail int4", "llama.cpp Q4_0", 1.5)
    assert (eight.ours, eight.peer, eight.ratio) == ("vitrail int8", "llama.cpp Q8_0", pytest.approx(1.1))
    assert four.met
    assert not eight.met


def test_wider_weights_are_shown_beside_ours_of_eight_bits():
    rows = [row("vitrail int4", [1.0]), row("vitrail int8", [1.0], bits=8), row("torch", [1.0], bits=16)]
    assert [each["who"] for each in comparable(rows, rows[2])] == ["vitrail int8", "torch"]


def test_batched_decoding_is_to_win_by_more():
    rows = [row("vitrail int4", [1.0], size=8), row("peer", [1.4], size=8)]
    (four, _) = verdicts(rows, {})
    assert four.wanted == 1.5
    assert not four.met


def test_in_vision_ours_has_to_be_as_exact_as_the_fastest_peer():
    rows = [
        row("vitrail int8", [1.0], kind="vision", bits=8),
        row("vitrail bf16", [2.0], kind="vision", bits=16),
        row("peer bf16", [3.0], kind="vision", bits=16),
    ]
    cosine = {"vitrail int8": 0.999, "vitrail bf16": 0.99999, "peer bf16": 0.99998}
    (found,) = verdicts(rows, cosine)
    assert (found.ours, found.ratio, found.met) == ("vitrail bf16", 1.5, True)
    (found,) = verdicts(rows, {})
    assert found.ours == "vitrail int8"


def test_without_a_peer_or_without_ours_nothing_is_met():
    four, eight = verdicts([row("vitrail int4", [1.0])], {})
    assert (four.peer, four.ratio, four.met) == (None, None, False)
    assert (eight.ours, eight.peer) == (None, None)
    four, _ = verdicts([row("peer", [1.0])], {})
    assert (four.ours, four.met) == (None, False)


def test_accuracy_is_the_mean_cosine_of_rows_and_the_share_of_equal_first_tokens():
    truth = {"logits": np.eye(4, dtype=np.float32), "first": np.arange(4)}
    found = {"logits": np.eye(4, dtype=np.float32) * 3, "first": np.array([0, 1, 2, 9])}
    assert accuracy(found, truth) == {"logits_cosine": 1.0, "first_token_share": 0.75}
    turned = {"logits": np.roll(np.eye(4), 1, axis=1), "first": np.arange(4)}
    assert accuracy(turned, truth) == {"logits_cosine": 0.0, "first_token_share": 1.0}
    assert accuracy({"first": np.arange(4)}, truth) == {"first_token_share": 1.0}
