"""Sampling, against plain formulas and, for the filters, against transformers' own processors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.runtime.decoding import Sink, drain, make, request
from transformers.generation import logits_process as hf

from vitrail.core import GenerateOptions
from vitrail.errors import ServerError
from vitrail.options import LOWEST_REPETITION_PENALTY
from vitrail.sample import Draw, Sampler, likeliest, log_probability, most_likely
from vitrail.session.fake import FakeDecoder

VOCAB = 1000
LOGITS = np.random.default_rng(1).normal(scale=3, size=VOCAB).astype(np.float32)


def drawn(count=2000, *, logits=LOGITS, seed=0, **options):
    sampler = Sampler(GenerateOptions(**options), seed=seed)
    return [sampler.sample(logits)[0] for _ in range(count)]


def kept_by(*processors, logits=LOGITS):
    scores = torch.tensor(logits)[None]
    for processor in processors:
        scores = processor(torch.zeros(1, 0, dtype=torch.long), scores)
    return set(np.flatnonzero(np.isfinite(scores[0].numpy())).tolist())


def softmax(logits):
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def test_temperature_zero_takes_the_largest_logit():
    assert drawn(3) == [int(LOGITS.argmax())] * 3


def test_ties_go_to_the_lowest_id():
    assert Sampler(GenerateOptions()).sample(np.array([0, 2, 1, 2], np.float32))[0] == 1


def test_draws_follow_the_softmax_at_the_temperature():
    logits = LOGITS[:6]
    counts = np.bincount(drawn(20_000, logits=logits, temperature=2.0), minlength=6) / 20_000
    assert np.abs(counts - softmax(logits / 2)).max() < 0.015


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 1e-4])
def test_a_tiny_temperature_is_greedy(temperature):
    assert set(drawn(20, temperature=temperature)) == {int(LOGITS.argmax())}


@pytest.mark.parametrize(
    ("options", "processors"),
    [
        ({"top_k": 5}, (hf.TopKLogitsWarper(5),)),
        ({"top_p": 0.7}, (hf.TopPLogitsWarper(0.7),)),
        ({"top_p": 0.999}, (hf.TopPLogitsWarper(0.999),)),
        ({"top_p": 1e-9}, (hf.TopPLogitsWarper(1e-9),)),
        ({"min_p": 0.2}, (hf.MinPLogitsWarper(0.2),)),
        ({"top_k": 8, "top_p": 0.8}, (hf.TopKLogitsWarper(8), hf.TopPLogitsWarper(0.8))),
        (
            {"top_k": 12, "top_p": 0.95, "min_p": 0.3},
            (hf.TopKLogitsWarper(12), hf.TopPLogitsWarper(0.95), hf.MinPLogitsWarper(0.3)),
        ),
    ],
)
def test_filters_leave_what_transformers_leaves(options, processors):
    logits = LOGITS / 3
    kept = kept_by(hf.TemperatureLogitsWarper(0.5), *processors, logits=logits)
    found = set(drawn(6000, logits=logits, temperature=0.5, **options))
    assert found <= kept
    likely = {i for i in kept if softmax(logits * 2)[i] > 2e-3}
    assert likely <= found


def test_a_nucleus_of_most_of_the_vocabulary_is_found_beyond_the_first_guesses():
    flat = np.zeros(20_000, np.float32)
    found = set(drawn(500, logits=flat, temperature=1.0, top_p=0.9))
    assert 17_000 < max(found) < 18_000


def test_masked_logits_are_never_drawn():
    logits = np.array([-np.inf, 0, -np.inf, 0, -np.inf], np.float32)
    assert set(drawn(200, logits=logits, temperature=2.0)) == {1, 3}


def test_the_repetition_penalty_weighs_prompt_and_answer_as_transformers_does():
    logits = np.array([2.0, -1.0, 1.9, 1.5, -3.0], np.float32)
    processor = hf.RepetitionPenaltyLogitsProcessor(1.3)
    sampler = Sampler(GenerateOptions(repetition_penalty=1.3), prompt_ids=[1, 4, 1])
    seen = [1, 4, 1]
    for _ in range(4):
        expected = processor(torch.tensor([seen]), torch.tensor(logits)[None])[0].numpy()
        assert np.allclose(sampler._penalize(logits), expected)
        seen.append(sampler.sample(logits)[0])
    assert seen[3:] == [0, 2, 0, 0]


def test_presence_and_frequency_penalties_count_the_answers_tokens_only():
    logits = np.array([1.0, 0.9, 0.0], np.float32)
    sampler = Sampler(GenerateOptions(presence_penalty=0.25, frequency_penalty=0.5), prompt_ids=[1, 2])
    assert [sampler.sample(logits)[0] for _ in range(4)] == [0, 1, 0, 1]
    assert np.allclose(sampler._penalize(logits), [1.0 - 0.25 - 1.0, 0.9 - 0.25 - 1.0, 0.0])


def test_penalties_leave_the_logits_as_they_were():
    before = LOGITS.copy()
    drawn(3, repetition_penalty=2.0, temperature=1.0, top_k=3)
    assert (before == LOGITS).all()


def test_a_seed_repeats_the_draws_and_another_does_not():
    assert drawn(50, seed=7, temperature=1.0) == drawn(50, seed=7, temperature=1.0)
    assert drawn(50, seed=7, temperature=1.0) != drawn(50, seed=8, temperature=1.0)
    assert drawn(50, seed=None, temperature=1.0) != drawn(50, seed=None, temperature=1.0)


def test_log_probabilities_are_those_of_the_raw_logits_most_likely_first():
    sampler = Sampler(GenerateOptions(logprobs=3, temperature=1.5, repetition_penalty=2.0), seed=3)
    token_id, found = sampler.sample(LOGITS)
    expected = torch.log_softmax(torch.tensor(LOGITS, dtype=torch.float64), 0)
    assert found.token_id == token_id
    assert found.logprob == pytest.approx(float(expected[token_id]), abs=1e-5)
    assert [i for i, _ in found.top] == expected.topk(3).indices.tolist()
    assert [p for _, p in found.top] == pytest.approx(expected.topk(3).values.tolist(), abs=1e-5)


def test_log_probabilities_without_alternatives_and_without_any():
    assert log_probability(LOGITS, 4, top=0).top == ()
    assert Sampler(GenerateOptions(logprobs=0)).sample(LOGITS)[1].top == ()
    assert Sampler(GenerateOptions()).sample(LOGITS)[1] is None


@pytest.mark.parametrize("count", [0, 1, 3, 5, 9])
def test_the_most_likely_are_in_order_with_ties_by_id(count):
    values = np.array([1, 3, 2, 3, 2], np.float32)
    assert most_likely(values, count).tolist() == [1, 3, 2, 4, 0][:count]


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(poison, temperature):
    logits = LOGITS.copy()
    logits[17] = poison
    with pytest.raises(ServerError, match="not finite"):
        Sampler(GenerateOptions(temperature=temperature)).sample(logits)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("penalty", [LOWEST_REPETITION_PENALTY, 10.0])
def test_the_strongest_repetition_penalties_leave_large_logits_finite(penalty, temperature):
    options = GenerateOptions(repetition_penalty=penalty, temperature=temperature)
    sampler = Sampler(options, seed=0, prompt_ids=range(VOCAB))
    scores = sampler._penalize(LOGITS * np.float32(1e30))
    assert np.isfinite(scores).all()
    assert 0 <= sampler.sample(LOGITS * np.float32(1e30))[0] < VOCAB


def test_the_raw_logits_are_blamed_and_not_a_penalty():
    options = GenerateOptions(repetition_penalty=1e-45)
    with np.errstate(over="ignore", divide="ignore"):
        assert Sampler(options, prompt_ids=[3]).sample(np.abs(LOGITS))[0] == 3


class Poisoned(FakeDecoder):
    """A session whose logits are no numbers."""

    def _logits(self, slot, position):
        return super()._logits(slot, position) * np.float32("nan")


def test_an_error_with_a_name_is_the_request_s_own_and_logs_no_traceback(caplog):
    decoder, sink = make(Poisoned()), Sink()
    decoder.submit(request(), sink)
    drain(decoder)
    assert "not finite" in str(sink.events[-1])
    assert not [record for record in caplog.records if record.exc_info]


def test_greedy_rows_of_a_step_are_found_at_once_and_others_keep_their_logits():
    logits = np.stack([LOGITS, LOGITS, LOGITS, LOGITS])
    logits[1, [30, 20]] = LOGITS.max() + 1  # a tie goes to the lowest id
    logits[3, 7] = np.nan
    found = likeliest(logits, [Draw(), Draw(), Draw(temperature=1.0), Draw()])
    assert found[:2] == [int(LOGITS.argmax()), 20]
    for row in (2, 3):
        np.testing.assert_array_equal(found[row], logits[row])
    (kept,) = likeliest(logits[:1], [None])
    np.testing.assert_array_equal(kept, LOGITS)
    assert likeliest(np.empty((0, VOCAB), np.float32), []) == []
