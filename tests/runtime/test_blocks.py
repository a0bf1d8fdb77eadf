"""Which slots a run of an engine covers, and how a step becomes runs."""

import numpy as np
import pytest

from vitrail.session import Step
from vitrail.session.blocks import chunks, covering, distinct_rows, widened


def decode_step(first, past, wanted):
    embeds = np.arange(1, len(past) + 1, dtype=np.float32).reshape(-1, 1, 1)
    return Step(first, embeds, np.array(past, np.int32), np.array(wanted))


@pytest.mark.parametrize("slots", [1, 2, 3, 4, 6, 8, 32])
def test_every_span_is_covered_by_an_aligned_block_of_the_slots(slots):
    blocks = set()
    for first in range(slots):
        for rows in range(1, slots - first + 1):
            block = covering(first, rows, slots=slots)
            assert block.first <= first
            assert first + rows <= block.first + block.rows <= slots
            assert block.first % block.rows == 0
            blocks.add(block)
    assert len(blocks) < 2 * slots


def test_a_single_row_is_covered_by_its_own_slot():
    assert covering(5, 1, slots=8) == (5, 1)
    assert covering(2, 2, slots=8) == (2, 2)
    assert covering(3, 2, slots=8) == (0, 8)
    assert covering(4, 1, slots=5) == (4, 1)
    assert covering(3, 2, slots=5) == (0, 5)


def test_rows_beside_the_step_are_zeros_at_the_idle_position():
    wide = widened(decode_step(1, [7, 9], [1]), covering(1, 2, slots=4), idle_position=63)
    assert wide.first_slot == 0
    assert wide.past_lengths.tolist() == [63, 7, 9, 63]
    assert wide.inputs_embeds.reshape(-1).tolist() == [0, 1, 2, 0]
    assert wide.logit_positions.tolist() == [2]


def test_a_step_that_fills_its_block_stays_as_it_is():
    step = decode_step(2, [7, 9], [0, 1])
    assert widened(step, covering(2, 2, slots=4), idle_position=63) is step


def test_a_long_prompt_is_split_and_keeps_its_places():
    embeds = np.arange(10, dtype=np.float32).reshape(1, 10, 1)
    step = Step(3, embeds, np.array([5], np.int32), np.array([0, 4, 9]), is_prompt=True)
    parts = list(chunks(step, new_tokens=4))
    assert all(part.is_prompt and part.first_slot == 3 for part in parts)
    assert [part.past_lengths.tolist() for part in parts] == [[5], [9], [13]]
    assert [part.logit_positions.tolist() for part in parts] == [[0], [0], [1]]
    np.testing.assert_array_equal(np.concatenate([part.inputs_embeds for part in parts], axis=1), embeds)


def test_one_logit_is_computed_where_none_is_wanted():
    assert distinct_rows(np.array([], np.int64), 7).tolist() == [6]
    assert distinct_rows(np.array([2, 3]), 7).tolist() == [2, 3]
