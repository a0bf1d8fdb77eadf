import threading
from itertools import islice, pairwise

import pytest
from tests.runtime.benchmark.fakes import Answers, FakeClock, asks

from vitrail.benchmark import feed as feed_module
from vitrail.benchmark.feed import Feed
from vitrail.benchmark.load import Load, Stage
from vitrail.errors import Busy, OptionError, ServerError


def run(load, *scripts, arrivals_s=None, number=1000):
    """A stage of one worker on a clock that only answers move."""
    clock = FakeClock()
    stage = Stage(Answers(clock, *scripts), asks(number), load, clock=clock)
    if arrivals_s is not None:
        stage._arrivals_s = iter(arrivals_s)
    return stage.run()


def test_a_closed_loop_asks_as_soon_as_it_is_free():
    tally = run(Load(concurrency=1, requests=3), [0.5, 0.5])
    assert [sample.due_s for sample in tally.samples] == [0, 1, 2]
    assert [sample.latency_ms for sample in tally.samples] == [1000] * 3
    assert tally.duration_s == 3


def test_in_an_open_loop_time_counts_from_the_arrival_however_busy_the_server_is():
    tally = run(Load(rate=2, requests=4, max_in_flight=1), [0.5, 0.5], arrivals_s=[0, 0.5, 1, 1.5])
    assert [sample.latency_ms for sample in tally.samples] == [1000, 1500, 2000, 2500]
    assert [sample.ttft_ms for sample in tally.samples] == [500, 1000, 1500, 2000]
    assert [sample.lag_ms for sample in tally.samples] == [0, 500, 1000, 1500]


def test_an_open_loop_waits_for_an_arrival():
    tally = run(Load(rate=2, requests=2, max_in_flight=1), [0.5], arrivals_s=[3, 7])
    assert [(sample.started_s, sample.latency_ms) for sample in tally.samples] == [(3, 500), (7, 500)]


def test_arrivals_are_a_seeded_poisson_process():
    load = Load(rate=4, requests=1)
    arrivals_s = list(islice(load.arrivals_s(1), 20_000))
    gaps_s = [later - earlier for earlier, later in pairwise(arrivals_s)]
    mean_s = sum(gaps_s) / len(gaps_s)
    assert mean_s == pytest.approx(0.25, rel=0.03)
    deviation_s = (sum((gap - mean_s) ** 2 for gap in gaps_s) / len(gaps_s)) ** 0.5
    assert deviation_s == pytest.approx(mean_s, rel=0.03)
    assert arrivals_s == list(islice(load.arrivals_s(1), 20_000))
    assert arrivals_s[0] != next(load.arrivals_s(2))


def test_a_stage_ends_after_its_duration_and_waits_for_what_is_under_way():
    tally = run(Load(concurrency=1, duration_s=2.5), [1.0])
    assert [sample.ended_s for sample in tally.samples] == [1, 2, 3]


def test_no_question_arrives_after_an_open_loop_s_duration():
    tally = run(Load(rate=1, duration_s=2, max_in_flight=1), [0.1], arrivals_s=[0.5, 1.5, 2.5])
    assert len(tally.samples) == 2


def test_a_stage_ends_with_its_questions():
    assert len(run(Load(concurrency=1, requests=9), [1.0], number=4).samples) == 4


def test_failures_are_counted_beside_the_answers():
    tally = run(Load(concurrency=1, requests=6), [1.0], Busy("full"), ServerError("gone"))
    assert (len(tally.answered), tally.errors, tally.ending) == (2, {"busy": 2, "server": 2}, "complete")


def test_a_server_that_only_fails_is_given_up():
    tally = run(Load(concurrency=1, requests=1000), ServerError("gone"))
    assert (tally.ending, tally.errors) == ("gave up", {"server": 6})


def test_a_busy_server_is_not_given_up():
    tally = run(Load(concurrency=1, requests=100), Busy("full"))
    assert (tally.ending, tally.errors) == ("complete", {"busy": 100})


class Meeting:
    """Answers once `number` requests are there together; fails where they never are."""

    def __init__(self, number):
        self.barrier = threading.Barrier(number, timeout=60)
        self.answers = Answers(FakeClock(), [0.0])

    def stream(self, messages, **options):
        self.barrier.wait()
        return self.answers.stream(messages, **options)


def test_a_closed_loop_holds_its_concurrency():
    tally = Stage(Meeting(4), asks(), Load(concurrency=4, requests=8)).run()
    assert (len(tally.answered), tally.errors) == (8, {})


class Stuck:
    """Never answers until it is closed, as a client or an engine wakes its waiting threads."""

    def __init__(self):
        self.reached, self.closed = threading.Event(), threading.Event()

    def stream(self, messages, **options):
        self.reached.set()
        self.closed.wait(60)
        raise ServerError("closed")
        yield


def interrupted(stuck, **limits):
    def interrupt(_tally):
        assert stuck.reached.wait(60)
        raise KeyboardInterrupt

    stage = Stage(stuck, asks(), Load(concurrency=2, requests=100))
    with pytest.raises(KeyboardInterrupt):
        stage.run(interrupt)
    return stage


def test_an_interrupt_keeps_what_there_is():
    stuck = Stuck()
    stage = interrupted(stuck)
    stuck.closed.set()
    tally = stage.settle()
    assert (tally.ending, len(tally.samples), set(tally.errors)) == ("interrupted", 2, {"server"})


def test_what_never_wakes_is_counted_as_cancelled_and_only_once():
    stuck = Stuck()
    stage = interrupted(stuck)
    tally = stage.settle(timeout_s=0)
    assert tally.errors == {"cancelled": 2}
    stuck.closed.set()
    for thread in threading.enumerate():
        if thread.name.startswith("bench-"):
            thread.join(60)
    assert len(tally.samples) == 2


def test_questions_are_made_ahead_within_bounds(monkeypatch):
    monkeypatch.setattr(feed_module, "LIMIT_ASKS", 5)
    counted = []
    source = (counted.append(ask) or ask for ask in asks(20))
    with Feed(source) as feed:
        feed.wait_until_full()
        assert len(counted) == 5
        assert [feed.take().question.index for _ in range(20)] == list(range(20))
        assert feed.take() is None


def test_what_breaks_while_questions_are_made_breaks_the_stage():
    def broken():
        yield from asks(1)
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        Stage(Answers(FakeClock(), [0.1]), broken(), Load(concurrency=1, requests=5)).run()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"requests": 1}, "either concurrency"),
        ({"concurrency": 1, "rate": 1, "requests": 1}, "either concurrency"),
        ({"concurrency": 1}, "requests or the duration"),
        ({"concurrency": 0, "requests": 1}, "0 requests at once"),
        ({"concurrency": 2000, "requests": 1}, "2000 requests at once"),
        ({"concurrency": 1, "requests": 0}, "requests is 0"),
        ({"concurrency": 1, "requests": 10**7}, "requests is 10000000"),
        ({"rate": 0.0, "requests": 1}, "rate is 0"),
        ({"rate": float("nan"), "requests": 1}, "rate is nan"),
        ({"concurrency": 1, "duration_s": -1.0}, "duration_s is -1"),
        ({"concurrency": 1, "requests": 1, "warmup": -1}, "warmup is -1"),
    ],
)
def test_an_impossible_load_is_refused(options, words):
    with pytest.raises(OptionError, match=words):
        Load(**options)
