"""Who is measured when, and what samples say."""

import pytest
from bench.peers.process import WorkerError
from bench.peers.rounds import Sample, merged, take_turns


def run(names, rounds, seconds, *, fails=()):
    """(turns, order of measuring); `fails` holds (name, how many times it works before it fails)."""
    order, left = [], dict(fails)

    def sample(name):
        if left.get(name) == 0:
            raise WorkerError(f"{name} broke")
        if name in left:
            left[name] -= 1
        order.append(name)
        return Sample(seconds[name][order.count(name) - 1], 1.0, 18.0)

    def warm_up(name):
        if left.get(name) == -1:
            raise WorkerError(f"{name} never began")

    return take_turns(names, rounds=rounds, warm_up=warm_up, sample=sample), order


def test_every_other_round_goes_backwards():
    _, order = run("abc", 3, {name: [1, 1, 1] for name in "abc"})
    assert "".join(order) == "abccbaabc"


def test_one_that_fails_later_has_no_figures_and_the_others_go_on():
    turns, order = run("ab", 3, {"a": [1, 1, 1], "b": [1, 1, 1]}, fails=[("b", 1)])
    assert turns.failures == {"b": "b broke"}
    assert turns.seconds("a") == [1, 1, 1]
    assert turns.seconds("b") == []
    assert "".join(order) == "abaa"


def test_one_that_fails_its_warm_up_is_never_measured():
    turns, order = run("ab", 2, {"a": [1, 1], "b": [1, 1]}, fails=[("b", -1)])
    assert turns.failures == {"b": "b never began"}
    assert order == ["a", "a"]


def test_a_stage_that_is_measured_again_loses_all_its_old_rows():
    old = [{"what": "vision", "who": "a"}, {"what": "vision", "who": "b"}, {"what": "decode", "who": "a"}]
    new = [{"what": "vision", "who": "a", "speed": 2}]
    assert merged(old, new) == [{"what": "decode", "who": "a"}, {"what": "vision", "who": "a", "speed": 2}]


def test_errors_that_are_no_workers_end_the_run():
    def broken(name):
        raise KeyError(name)

    with pytest.raises(KeyError):
        take_turns(["a"], rounds=1, warm_up=broken, sample=broken)
