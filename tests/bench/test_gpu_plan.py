"""The GPU benchmark's policy: what runs within a fixed time, in which order, and what is told of the rest."""

from contextlib import contextmanager

import pytest
from bench.gpu.plan import Group, Run, Stage
from bench.gpu.timing import interleaved


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def group(clock, title, stages, *, opening_s=5.0, fails=()):
    """Stages as (title, expected seconds, taken seconds, rank)."""

    @contextmanager
    def opened():
        clock.now_s += opening_s
        if "open" in fails:
            raise MemoryError("no room for the weights\nsecond line")
        yield title

    def stage(name, expected_s, taken_s, rank):
        def run(value):
            assert value == title
            clock.now_s += taken_s
            if name in fails:
                raise RuntimeError(f"{name} broke")

        return Stage(name, expected_s, run, rank)

    return Group(title, opening_s, opened, tuple(stage(*each) for each in stages))


def outcomes(groups, clock, budget_s):
    found = []
    Run(groups, budget_s=budget_s, on_outcome=found.append, clock=clock)()
    return found


def ran(found):
    return [
        each.title for each in found if each.left_out is None and not each.title.endswith(("open", "close"))
    ]


def left(found):
    return [each.title for each in found if each.left_out]


TWO_STAGES = [("first", 10, 10, 0), ("more", 10, 10, 1)]


def test_with_time_for_everything_all_stages_run_in_order(clock):
    groups = [group(clock, "a", TWO_STAGES), group(clock, "b", TWO_STAGES)]
    found = outcomes(groups, clock, 100)
    assert ran(found) == ["a: first", "a: more", "b: first", "b: more"]
    assert left(found) == []


def test_a_stage_gives_way_to_those_of_a_lower_rank_in_later_groups(clock):
    groups = [group(clock, "a", TWO_STAGES), group(clock, "b", TWO_STAGES)]
    found = outcomes(groups, clock, 34)
    assert ran(found) == ["a: first", "b: first"]
    assert left(found) == ["a: more", "b: more"]
    assert {each.left_out for each in found if each.left_out} == {"no time was left"}


def test_a_group_whose_first_stage_does_not_fit_is_not_opened(clock):
    found = outcomes([group(clock, "a", TWO_STAGES)], clock, 12)
    assert left(found) == ["a: first", "a: more"]
    assert clock.now_s == 0


@pytest.mark.parametrize(("budget_s", "out"), [(60, ["b: last"]), (59, ["a: last", "b: last"])])
def test_the_last_rank_waits_for_all_others_of_later_groups_and_for_none_of_its_own(clock, budget_s, out):
    stages = [*TWO_STAGES, ("last", 10, 10, 2)]
    found = outcomes([group(clock, title, stages) for title in "ab"], clock, budget_s)
    assert left(found) == out


def test_a_group_with_nothing_of_a_lower_rank_is_not_waited_for(clock):
    groups = [group(clock, "a", TWO_STAGES), group(clock, "b", TWO_STAGES[1:])]
    found = outcomes(groups, clock, 30)
    assert ran(found) == ["a: first", "a: more"]
    assert left(found) == ["b: more"]


def test_a_machine_that_is_slower_than_expected_leaves_more_out(clock):
    slow = [("first", 10, 30, 0), ("more", 10, 30, 1)]
    found = outcomes([group(clock, "a", slow), group(clock, "b", slow)], clock, 65)
    assert ran(found) == ["a: first"]
    assert left(found) == ["a: more", "b: first", "b: more"]


def test_a_stage_that_breaks_costs_no_other_and_its_reason_is_told(clock):
    found = outcomes([group(clock, "a", TWO_STAGES, fails=("first",))], clock, 100)
    assert ran(found) == ["a: first", "a: more"]
    assert found[1].failure == "RuntimeError: first broke"


def test_a_group_that_cannot_be_opened_leaves_its_stages_out(clock):
    groups = [group(clock, "a", TWO_STAGES, fails=("open",)), group(clock, "b", TWO_STAGES)]
    found = outcomes(groups, clock, 200)
    assert found[0].failure == "MemoryError: no room for the weights"
    assert left(found) == ["a: first", "a: more"]
    assert ran(found) == ["b: first", "b: more"]


def test_contestants_take_turns_and_the_warm_up_is_not_counted(clock):
    order = []

    def takes(name, seconds):
        def action():
            order.append(name)
            clock.now_s += seconds.pop(0)

        return action

    actions = {"ours": takes("ours", [9, 1, 3, 2]), "theirs": takes("theirs", [9, 4, 4, 5])}
    found = interleaved(actions, rounds=3, synchronize=lambda: None, clock=clock)
    assert order == ["ours", "theirs"] * 4
    assert found["ours"].rounds_ms == (1000, 3000, 2000)
    assert (found["ours"].median_ms, found["theirs"].median_ms) == (2000, 4000)


def test_what_warms_up_may_be_something_else(clock):
    order = []
    interleaved(
        {"ours": lambda: order.append("run")},
        rounds=2,
        synchronize=lambda: None,
        warm_ups={"ours": lambda: order.append("begin")},
    )
    assert order == ["begin", "run", "run"]


def test_a_contestant_that_fails_is_left_out_of_later_rounds(clock):
    calls = []

    def broken():
        calls.append(1)
        raise ValueError("no kernel")

    found = interleaved(
        {"ours": lambda: None, "theirs": broken}, rounds=3, synchronize=lambda: None, clock=clock
    )
    assert len(calls) == 1
    assert found["theirs"].failure == "ValueError: no kernel"
    assert found["theirs"].median_ms is None
    assert len(found["ours"].rounds_ms) == 3
