"""Slots of the KV cache and what they keep."""

from __future__ import annotations

import numpy as np
import pytest

from vitrail.kv import NOTHING, Move, Seat, Slots, common_prefix, longest_reusable, prompt_keys, reusable


def keys(*values):
    return np.array(values, np.int64)


def test_the_lowest_empty_slot_is_taken_first():
    slots = Slots(3)
    assert [slots.take().slot for _ in range(3)] == [0, 1, 2]
    slots.release(2)
    slots.release(0)
    assert slots.take() == Seat(0, 0)


def test_none_is_left_when_all_are_taken():
    slots = Slots(1)
    slots.take()
    assert slots.take() is None
    assert (slots.free, slots.used) == (0, 1)


@pytest.mark.parametrize("slot", [0, 1, 2, -1])
def test_only_a_taken_slot_can_be_released(slot):
    slots = Slots(2)
    slots.take()
    slots.release(0)
    with pytest.raises(ValueError, match="not taken"):
        slots.release(slot)


def slots_holding(*held):
    slots = Slots(len(held))
    for _ in held:
        slots.take()
    for slot, content in enumerate(held):
        slots.release(slot, content)
    return slots


def test_a_prompt_that_continues_a_kept_one_gets_its_slot():
    slots = slots_holding(keys(1, 2), keys(1, 2, 3), keys(9), NOTHING)
    assert slots.take(keys(1, 2, 3, 4)) == Seat(1, 3)


def test_a_kept_conversation_is_not_overwritten_for_a_shared_beginning_while_a_slot_is_empty():
    slots = slots_holding(keys(1, 2, 3), NOTHING)
    assert slots.take(keys(1, 2, 7)) == Seat(1, 0)


def test_without_an_empty_slot_the_least_recently_released_goes():
    slots = slots_holding(keys(5), keys(6), keys(7))
    assert slots.take(keys(6, 1)) == Seat(1, 1)
    slots.release(1, keys(8))
    assert slots.take(keys(1)) == Seat(0, 0)
    assert slots.take(keys(1)) == Seat(1, 0, Move(1, 2, 1))
    assert slots.kept[2].tolist() == [8]


def test_the_slot_that_holds_most_of_a_prompts_beginning_is_the_last_to_go():
    slots = slots_holding(keys(1, 2, 9), keys(5), keys(1, 8))
    assert slots.take(keys(1, 2, 3)).slot == 1
    assert slots.take(keys(1, 2, 3)) == Seat(2, 1)
    assert slots.take(keys(1, 2, 3)) == Seat(0, 2)


def test_a_new_prompt_sits_next_to_the_taken_slots_and_what_was_there_is_moved_out_of_the_way():
    slots = slots_holding(keys(5), keys(6, 6), keys(7), keys(8))
    assert slots.take(keys(8, 1)) == Seat(3, 1)
    assert slots.take(keys(1)) == Seat(2, 0, Move(2, 0, 1))
    assert {slot: held.tolist() for slot, held in slots.kept.items()} == {1: [6, 6], 0: [7]}
    assert slots.take(keys(2)) == Seat(1, 0)
    assert slots.take(keys(7, 7)) == Seat(0, 1)


def test_an_empty_slot_takes_in_what_was_moved():
    slots = slots_holding(keys(5), NOTHING, keys(7), keys(8))
    slots.take(keys(8, 1))
    assert slots.take(keys(1)) == Seat(2, 0, Move(2, 1, 1))
    assert {slot: held.tolist() for slot, held in slots.kept.items()} == {0: [5], 1: [7]}


@pytest.mark.parametrize("seed", range(5))
def test_every_key_stays_where_the_slots_say_whatever_comes_and_goes(seed):
    chance = np.random.default_rng(seed)
    slots, content, taken = Slots(6), {}, []
    for number in range(400):
        if taken and chance.random() < 0.5:
            slot = taken.pop(chance.integers(len(taken)))
            content[slot] = keys(number, *range(chance.integers(3)))[: chance.integers(4)]
            slots.release(slot, content[slot])
        elif seat := slots.take(keys(number)):
            if seat.move:
                content[seat.move.target] = content[seat.move.source]
            taken.append(seat.slot)
        assert all(np.array_equal(held, content.get(slot, NOTHING)) for slot, held in slots.kept.items())
        assert sorted([*taken, *slots.kept]) == list(range(6))


def test_nothing_is_found_again_after_it_is_forgotten():
    slots = slots_holding(keys(1, 2), keys(3))
    slots.forget()
    assert slots.take(keys(1, 2, 3)) == Seat(0, 0)


@pytest.mark.parametrize(
    ("held", "wanted", "count"),
    [((1, 2, 3), (1, 2, 4, 5), 2), ((1, 2, 3), (1, 2, 3), 2), ((), (1,), 0), ((4,), (1, 2), 0)],
)
def test_the_last_token_of_a_prompt_is_never_reused(held, wanted, count):
    assert reusable(keys(*held), keys(*wanted)) == count


def test_the_longest_beginning_wins():
    assert longest_reusable([(0, keys(1)), (5, keys(1, 2, 3)), (7, keys(1, 2))], keys(1, 2, 3, 4)) == Seat(
        5, 3
    )


def test_equal_tiles_have_equal_keys_and_a_changed_one_does_not():
    ids = np.array([5, 0, 0, 0, 0, 6], np.int32)
    embeds = np.random.default_rng(0).normal(size=(2, 2, 4)).astype(np.float32)
    same, changed = prompt_keys(ids, embeds.copy(), 0), embeds.copy()
    changed[1, 0, 0] += 1e-6
    assert common_prefix(prompt_keys(ids, embeds, 0), same) == 6
    assert common_prefix(prompt_keys(ids, changed, 0), same) == 3
    assert list(same[[0, 5]]) == [5, 6]
    assert len(set(same.tolist())) == 6
    assert (same[1:5] < 0).all()


def test_the_order_of_tiles_matters():
    ids, embeds = np.zeros(4, np.int32), np.arange(16, dtype=np.float32).reshape(2, 2, 4)
    assert common_prefix(prompt_keys(ids, embeds, 0), prompt_keys(ids, embeds[::-1], 0)) == 0
