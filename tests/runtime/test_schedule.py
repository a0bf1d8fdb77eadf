"""The policy: which rows the next forward pass holds."""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import pytest

from vitrail.pace import Pace
from vitrail.schedule import Decode, Prefill, delays, due, next_batch


class Row(NamedTuple):
    slot: int
    prompt_tokens: int
    cached_tokens: int
    due: int = 0
    priority: int = 5


def pace(chunk=4, *, slowdown=math.inf):
    return Pace(largest_chunk=chunk, slowdown=slowdown)


def batch(*rows, chunk=4, after_prefill=False, kept=(), at=None):
    free = dict.fromkeys(set(range(8)) - {row.slot for row in rows}, 0)
    return next_batch(rows, {**free, **dict(kept)}, pace=at or pace(chunk), after_prefill=after_prefill)


def test_nothing_is_scheduled_without_rows():
    assert batch() is None


def test_a_prompt_is_cached_chunk_by_chunk_and_only_its_last_chunk_is_answered():
    first, middle, last = (batch(Row(0, 10, cached)) for cached in (0, 4, 8))
    assert [(b.start, b.stop, b.new_tokens) for b in (first, middle, last)] == [
        (0, 4, 4),
        (4, 8, 4),
        (8, 10, 2),
    ]
    assert [bool(b.answered) for b in (first, middle, last)] == [False, False, True]


def test_prompts_are_cached_one_at_a_time_the_one_that_is_due_first():
    early, late = Row(3, 6, 4, due=6), Row(0, 6, 0, due=8)
    assert batch(late, early) == Prefill(early, 4, 6)


def test_of_prompts_that_are_due_at_once_the_first_admitted_is_cached_first():
    early, late = Row(3, 6, 4), Row(0, 6, 0)
    assert batch(early, late) == Prefill(early, 4, 6)


@pytest.mark.parametrize("seed", range(5))
def test_a_short_prompt_overtakes_a_long_one_which_is_still_read_in_time(seed):
    chance = random.Random(seed)
    read, long = 0, [3000, 0, due(0, 3000, 5, level=10**4)]
    short, waits = [20, 0, due(7, 20, 5, level=10**4)], 0
    prompts = [long, short]
    while long[1] < long[0]:
        rows = [Row(n, total, cached, place) for n, (total, cached, place) in enumerate(prompts)]
        chosen = batch(*rows, chunk=50)
        prompts[chosen.row.slot][1] += chosen.new_tokens
        read += chosen.new_tokens
        waits += short[1] < short[0]
        if sum(cached < total for total, cached, _ in prompts) < 4:  # slots
            size = chance.randint(1, 100)
            prompts.append([size, 0, due(read, size, 5, level=10**4)])
    assert waits == 0
    assert read <= 2 * 3000 + 4 * 100


def test_an_urgent_prompt_is_cached_before_all_others():
    waiting, urgent = Row(0, 9, 4, due(0, 9, 5, level=100), 5), Row(1, 99, 0, due(50, 99, 0, level=100), 0)
    assert batch(waiting, urgent).row == urgent


def test_prefill_and_decode_take_turns_while_both_have_work():
    prompt, answer = Row(0, 9, 0), Row(1, 3, 3)
    assert isinstance(batch(prompt, answer, after_prefill=False), Prefill)
    assert isinstance(batch(prompt, answer, after_prefill=True), Decode)


def test_either_goes_on_alone_when_the_other_has_no_work():
    assert isinstance(batch(Row(0, 9, 0), after_prefill=True), Prefill)
    assert isinstance(batch(Row(0, 9, 9), after_prefill=False), Decode)


def test_answers_go_on_while_the_pace_allows_no_chunk():
    owing = pace(slowdown=2.0)
    owing.wrote(1.0)
    owing.read(4, 3.0, writing=True)
    prompt, answer = Row(0, 9, 0), Row(1, 3, 3)
    assert isinstance(batch(prompt, answer, at=owing), Decode)
    assert isinstance(batch(prompt, at=owing), Prefill)


def test_less_urgent_answers_do_not_hold_back_a_prompt():
    owing = pace(slowdown=2.0)
    owing.wrote(1.0)
    owing.read(4, 3.0, writing=True)
    prompt, answer = Row(0, 9, 0, priority=1), Row(1, 3, 3, priority=2)
    assert batch(prompt, answer, at=owing) == Prefill(prompt, 0, 4)


def test_a_prompt_that_was_just_read_delays_the_answers_of_others_and_not_its_own():
    read, other = Row(0, 4, 4), Row(1, 4, 4)
    assert (delays(read, [read]), delays(read, [read, other])) == (False, True)


def test_a_decode_step_spans_the_slots_of_its_rows_and_carries_the_others_at_their_own_length():
    high, prefilling, low = Row(5, 3, 7), Row(3, 9, 4), Row(2, 2, 2)
    decode = batch(high, prefilling, low, Row(6, 9, 4), after_prefill=True)
    assert decode == Decode((low, high), 2, (2, 4, 0, 7))
    assert decode.answered == (low, high)


def test_a_decode_step_splits_into_one_for_every_row():
    decode = batch(Row(1, 3, 5), Row(4, 2, 2))
    assert decode.split() == (Decode((Row(1, 3, 5),), 1, (5,)), Decode((Row(4, 2, 2),), 4, (2,)))


def test_a_free_slot_in_the_span_is_carried_along_past_what_it_keeps():
    decode = batch(Row(1, 3, 5), Row(3, 2, 2), kept={2: 17})
    assert (decode.first_slot, decode.past_lengths) == (1, (5, 17, 2))
