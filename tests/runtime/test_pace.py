"""Chunks of prompts against machines of every kind: a fixed cost of each step and chunk and one of each token."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from vitrail.pace import CHUNK_STEPS, LEAST_SLOWDOWN, Pace

# (fixed, per prompt token, per decoding row) in seconds: a small CPU, a large one, a GPU.
MACHINES = [(0.1, 0.016, 0.02), (0.001, 0.0003, 0.0002), (0.01, 0.00002, 0.0001)]
# A chunk's fixed cost beside MACHINES[1], where another graph with other weights reads prompts.
READER_S = 0.006
LARGEST = 512


def simulate(pace, machine, *, prompt_tokens, rows=4, noise=0.0, seed=0, reader_s=None):
    """Read a prompt while `rows` answers are written; chunks with their seconds, and the number of decode steps."""
    fixed_s, token_s, row_s = machine
    reader_s = fixed_s if reader_s is None else reader_s
    chance = random.Random(seed)

    def cost(seconds):
        return seconds * chance.uniform(1, 1 + noise)

    pace.read(LARGEST, reader_s + LARGEST * token_s, writing=False)
    pace.wrote(cost(fixed_s + rows * row_s))
    chunks, steps, after_prefill = [], 0, False
    while prompt_tokens:
        tokens = 0 if after_prefill else min(prompt_tokens, pace.chunk(writing=True))
        after_prefill = tokens > 0
        if tokens:
            chunks.append((tokens, cost(reader_s + tokens * token_s)))
            pace.read(*chunks[-1], writing=True)
            prompt_tokens -= tokens
        else:
            steps += 1
            pace.wrote(cost(fixed_s + rows * row_s))
    return chunks, steps


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("slowdown", [LEAST_SLOWDOWN, 1.5, 2.0, 4.0])
def test_answers_take_at_most_so_many_times_longer(machine, slowdown):
    chunks, steps = simulate(Pace(largest_chunk=LARGEST, slowdown=slowdown), machine, prompt_tokens=20_000)
    step_s = machine[0] + 4 * machine[2]
    last_s = chunks[-1][1]
    average_s = step_s + (sum(seconds for _, seconds in chunks) - last_s) / steps
    assert average_s <= 1.01 * slowdown * step_s


@pytest.mark.parametrize("machine", MACHINES)
def test_the_time_that_prompts_get_is_used_up(machine):
    chunks, steps = simulate(Pace(largest_chunk=LARGEST, slowdown=2.0), machine, prompt_tokens=20_000)
    step_s = machine[0] + 4 * machine[2]
    assert sum(seconds for _, seconds in chunks) >= 0.85 * (steps - 2) * step_s


@pytest.mark.parametrize("machine", MACHINES)
def test_no_chunk_stalls_answers_for_long_and_half_of_its_time_goes_into_tokens(machine):
    chunks, _ = simulate(Pace(largest_chunk=LARGEST, slowdown=2.0), machine, prompt_tokens=20_000)
    step_s = machine[0] + 4 * machine[2]
    assert max(seconds for _, seconds in chunks) <= (CHUNK_STEPS + 1.01) * step_s
    settled = chunks[10:-1]
    assert all(tokens * machine[1] >= 0.45 * seconds or tokens == LARGEST for tokens, seconds in settled)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_chunks_do_not_shrink_to_nothing_where_one_costs_more_than_a_few_steps(noise):
    fixed_s, token_s, row_s = MACHINES[1]
    chunks, steps = simulate(
        Pace(largest_chunk=LARGEST, slowdown=2.0),
        MACHINES[1],
        prompt_tokens=20_000,
        noise=noise,
        reader_s=READER_S,
    )
    assert CHUNK_STEPS * (fixed_s + 4 * row_s) < READER_S
    settled = [tokens for tokens, _ in chunks[16:-1]]
    assert statistics.median(settled) * token_s == pytest.approx(READER_S, rel=0.5 if noise else 0.1)
    average_s = (1 + noise / 2) * (fixed_s + 4 * row_s) + sum(seconds for _, seconds in chunks[:-1]) / steps
    assert average_s <= 2.1 * (1 + noise / 2) * (fixed_s + 4 * row_s)


@pytest.mark.parametrize("slowdown", [1.75, 2.0])
def test_the_bound_is_on_steps_that_no_chunk_has_slowed_down(slowdown):
    pace, chunks_s, steps_s = Pace(largest_chunk=LARGEST, slowdown=slowdown), [], []
    pace.read(LARGEST, 0.512, writing=False)
    for _ in range(5):
        pace.wrote(0.010)
    for _ in range(400):
        tokens = 0 if len(chunks_s) > len(steps_s) else pace.chunk(writing=True)
        if tokens:
            chunks_s.append(0.001 * tokens)
            pace.read(tokens, chunks_s[-1], writing=True)
            steps_s.append(0.016)  # the next step finds everything cold
        else:
            steps_s.append(0.010)
        pace.wrote(steps_s[-1])
    assert (sum(steps_s) + sum(chunks_s[:-1])) / len(steps_s) <= 1.01 * slowdown * 0.010


def test_the_bound_holds_on_a_noisy_machine():
    pace, machine = Pace(largest_chunk=LARGEST, slowdown=2.0), MACHINES[0]
    chunks, steps = simulate(pace, machine, prompt_tokens=20_000, noise=2.0)
    step_s = 2 * (machine[0] + 4 * machine[2])
    assert (sum(seconds for _, seconds in chunks[:-1]) / steps) <= 1.1 * step_s


def test_a_target_in_seconds_is_a_bound_like_the_factor():
    machine = MACHINES[0]
    step_s = machine[0] + 4 * machine[2]
    by_factor = simulate(Pace(largest_chunk=LARGEST, slowdown=3.0), machine, prompt_tokens=5000)
    target = Pace(largest_chunk=LARGEST, slowdown=math.inf, tpot_target_s=3 * step_s)
    assert simulate(target, machine, prompt_tokens=5000) == by_factor


def test_a_target_that_the_machine_cannot_meet_leaves_prompts_a_tenth_of_the_time():
    pace = Pace(largest_chunk=LARGEST, slowdown=2.0, tpot_target_s=1e-6)
    chunks, steps = simulate(pace, MACHINES[0], prompt_tokens=2000)
    spent_s = sum(seconds for _, seconds in chunks)
    assert pace.slowdown == LEAST_SLOWDOWN
    assert spent_s == pytest.approx(steps * 0.018, rel=0.1)


@pytest.mark.parametrize("bound", [{"slowdown": math.inf}, {"slowdown": 2.0}])
def test_the_largest_chunk_is_read_where_nothing_is_measured_or_nothing_bounds(bound):
    pace = Pace(largest_chunk=LARGEST, **bound)
    assert pace.chunk(writing=True) == LARGEST
    pace.wrote(1e-6)
    pace.read(LARGEST, 100.0, writing=False)
    assert pace.chunk(writing=False) == LARGEST
    assert (pace.chunk(writing=True) == LARGEST) == (bound["slowdown"] == math.inf)
