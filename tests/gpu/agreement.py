"""When two runs of one model count as the same: rounding may decide a near tie, and nothing else."""

import numpy as np
import pytest

TIE = 0.05  # nats


def cosine(found, expected):
    found, expected = (np.asarray(each, np.float64).ravel() for each in (found, expected))
    return found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)


def assert_same_answer(found, expected, *, tie=TIE):
    """Choices with logprobs: equal up to the first token where both candidates were about as likely."""
    assert found.finish_reason == expected.finish_reason
    for ours, theirs in zip(found.logprobs, expected.logprobs, strict=True):
        known = dict(theirs.top)
        if ours.token_id != theirs.token_id:
            assert theirs.logprob - known.get(ours.token_id, -np.inf) < tie
            return
        assert ours.logprob == pytest.approx(theirs.logprob, abs=tie)
    assert found.text == expected.text
