"""Rows of several requests in one run of a vision model."""

import numpy as np

from vitrail.errors import InvalidInput, ServerError
from vitrail.triton.batched import run_batch


def double(array):
    if (array < 0).any():
        raise ValueError("negative")
    return array * 2, array > 0


def refuse_threes(array):
    if len(array) == 3:
        raise InvalidInput("three")


def test_rows_of_all_requests_run_at_once_and_return_to_their_own():
    runs = []
    parts = [np.arange(2), np.arange(3), np.arange(4, 8), np.zeros(0, int)]
    results = run_batch(
        parts, check=refuse_threes, run=lambda array: runs.append(len(array)) or double(array)
    )
    assert runs == [6]
    assert str(results[1]) == "three"
    assert [[list(output) for output in result] for index, result in enumerate(results) if index != 1] == [
        [[0, 2], [False, True]],
        [[8, 10, 12, 14], [True] * 4],
        [[], []],
    ]


def test_a_run_that_fails_is_run_again_alone_and_only_the_guilty_fail():
    results = run_batch([np.arange(2), np.array([-1]), np.arange(4)], check=refuse_threes, run=double)
    assert list(results[0][0]) == [0, 2]
    assert isinstance(results[1], ServerError)
    assert "negative" not in str(results[1])
    assert list(results[2][0]) == [0, 2, 4, 6]
