"""Closed and open loops over one worker: take the next question, wait until it is due, ask, record.

Closed: as many workers as concurrent requests, a question is due as soon as a worker is free. Open: questions are due at
the arrivals of a Poisson process, whether or not earlier ones are answered, and every time counts from then
("coordinated omission" otherwise: a slow server would slow the clock that it is measured with).

Threads drive the load, because an engine has no other interface; through gRPC they cost the client about as much
processor time per token as asyncio (docs/benchmark.md), and what the client used is in every report.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Literal, Protocol, TypeAlias

from vitrail.benchmark.feed import Feed
from vitrail.benchmark.measure import Asked, Failure, Gaps, Sample, measure
from vitrail.benchmark.workload import Ask
from vitrail.errors import Busy, Cancelled, OptionError

MAX_REQUESTS = 100_000
MAX_WORKERS = 1024
SETTLE_S = 20.0
# Failures in a row, beside one for each worker, after which a stage gives up. A busy server only says that it is.
PATIENCE = 5
# Of the warm-up before an open loop.
WARMUP_WORKERS = 4
_TICK_S = 0.2

Ending: TypeAlias = Literal["complete", "interrupted", "gave up"]


class Clock(Protocol):
    """Seconds, and waiting: until a moment or until the event is set."""

    def now(self) -> float: ...

    def wait_until(self, moment_s: float, stop: threading.Event) -> None: ...


class WallClock:
    def now(self) -> float:
        return time.perf_counter()

    def wait_until(self, moment_s: float, stop: threading.Event) -> None:
        remaining_s = moment_s - self.now()
        if remaining_s > 0:
            stop.wait(remaining_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One stage: a closed loop of `concurrency` requests at once, or an open one of `rate` arrivals per second.

    It ends after `requests` or `duration_s`; what is under way then is waited for. warmup requests go before, in a
    closed loop, unmeasured. max_in_flight bounds the open loop: arrivals beyond it wait, and their time counts.
    label: what it is called where it is no load of the sweep itself.
    """

    concurrency: int | None = None
    rate: float | None = None
    requests: int | None = None
    duration_s: float | None = None
    warmup: int = 0
    max_in_flight: int = 128
    is_warmup: bool = False
    label: str = ""

    def __post_init__(self) -> None:
        if (self.concurrency is None) == (self.rate is None):
            raise OptionError("give either concurrency (closed loop) or rate (open loop)")
        if self.requests is None and self.duration_s is None:
            raise OptionError("give the number of requests or the duration")
        if not 1 <= self.workers <= MAX_WORKERS:
            raise OptionError(f"{self.workers} requests at once; give 1 to {MAX_WORKERS}")
        if self.requests is not None and not 1 <= self.requests <= MAX_REQUESTS:
            raise OptionError(f"requests is {self.requests}; give 1 to {MAX_REQUESTS}")
        for name, value in (("rate", self.rate), ("duration_s", self.duration_s)):
            if value is not None and not 0 < value < 1e6:
                raise OptionError(f"{name} is {value:g}; it must be above 0 (and below a million)")
        if not 0 <= self.warmup <= MAX_REQUESTS:
            raise OptionError(f"warmup is {self.warmup}; give 0 to {MAX_REQUESTS}")

    @property
    def workers(self) -> int:
        return self.max_in_flight if self.concurrency is None else self.concurrency

    @property
    def mode(self) -> str:
        return "closed" if self.rate is None else "open"

    @property
    def title(self) -> str:
        if self.label:
            return self.label
        if self.is_warmup:
            return f"warm-up, concurrency {self.concurrency}"
        return f"concurrency {self.concurrency}" if self.rate is None else f"rate {self.rate:g}/s"

    @property
    def steps(self) -> tuple[Load, ...]:
        """The load, its warm-up before it where it has one."""
        if not self.warmup:
            return (self,)
        workers = self.concurrency or min(self.warmup, WARMUP_WORKERS)
        return (Load(concurrency=workers, requests=self.warmup, is_warmup=True), self)

    def arrivals_s(self, seed: int) -> Iterator[float] | None:
        """When questions are due in the open loop, from the stage's start, without end."""
        if self.rate is None:
            return None
        return _arrivals_s(self.rate, Random(f"arrivals {seed}"))  # noqa: S311 - no secret


def _arrivals_s(rate: float, random: Random) -> Iterator[float]:
    moment_s = 0.0
    while True:
        moment_s += random.expovariate(rate)
        yield moment_s


@dataclass(slots=True)
class Tally:
    """A stage so far; changed under the stage's lock only."""

    load: Load
    samples: list[Sample] = field(default_factory=list)
    gaps: Gaps = field(default_factory=Gaps)
    in_flight: dict[int, tuple[Ask, float]] = field(default_factory=dict)
    failed: Counter[str] = field(default_factory=Counter)
    failures_in_a_row: int = 0
    waited_for_feed_s: float = 0.0
    client_cpu_s: float = 0.0
    ending: Ending = "complete"

    def add(self, sample: Sample) -> None:
        self.samples.append(sample)
        if sample.failure is not None:
            self.failed[sample.failure.code] += 1

    @property
    def answered(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.failure is None]

    @property
    def failures(self) -> list[Failure]:
        return [sample.failure for sample in self.samples if sample.failure is not None]

    @property
    def errors(self) -> dict[str, int]:
        """Failed requests by code."""
        return dict(self.failed.most_common())

    @property
    def duration_s(self) -> float:
        """From the first question due to the last answer."""
        if not self.samples:
            return 0.0
        return max(sample.ended_s for sample in self.samples) - min(sample.due_s for sample in self.samples)


class Stage:
    """Runs one load."""

    def __init__(
        self, asked: Asked, asks: Iterator[Ask], load: Load, *, seed: int = 0, clock: Clock | None = None
    ) -> None:
        self.tally = Tally(load)
        self._asked = asked
        self._asks = asks
        self._load = load
        self._arrivals_s = load.arrivals_s(seed)
        self._clock = clock or WallClock()
        self._taken = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._patience = (load.concurrency or PATIENCE) + PATIENCE
        self._start_s = 0.0

    def run(self, on_tick: Callable[[Tally], None] = lambda _: None) -> Tally:
        """Until the load's end; on_tick is called a few times a second. KeyboardInterrupt passes through."""
        with Feed(self._asks) as feed:
            feed.wait_until_full()
            workers = [
                threading.Thread(target=self._work, args=(feed,), name=f"bench-{number}", daemon=True)
                for number in range(min(self._load.workers, self._load.requests or MAX_REQUESTS))
            ]
            cpu_s, self._start_s = time.process_time(), self._clock.now()
            try:
                for worker in workers:
                    worker.start()
                for worker in workers:
                    while worker.is_alive():
                        worker.join(_TICK_S)
                        on_tick(self.tally)
            finally:
                self._stop.set()
                self.tally.client_cpu_s = time.process_time() - cpu_s
        return self.tally

    def stop(self) -> None:
        """Ask nothing more; what is under way is waited for."""
        self._stop.set()

    def settle(self, timeout_s: float = SETTLE_S) -> Tally:
        """After an interrupt: wait for what was under way, then count what is left of it as cancelled."""
        self.tally.ending = "interrupted"
        deadline_s = time.monotonic() + timeout_s
        while self.tally.in_flight and time.monotonic() < deadline_s:
            time.sleep(0.01)
        with self._lock:
            for ask, due_s in self.tally.in_flight.values():
                self.tally.add(_lost(ask, due_s, self._now_s()))
            self.tally.in_flight = {}
        return self.tally

    def _work(self, feed: Feed) -> None:
        while (next_ask := self._next(feed)) is not None:
            ask, due_s = next_ask
            if due_s is None:
                due_s = self._now_s()
            self._clock.wait_until(self._start_s + due_s, self._stop)
            if not self._stop.is_set():
                self._ask(ask, due_s)

    def _next(self, feed: Feed) -> tuple[Ask, float | None] | None:
        """The next question and when it is due (None: now); None when the stage has had its last. One worker at a time."""
        with self._turn:
            limit = self._load.requests or MAX_REQUESTS
            if self._stop.is_set() or self._taken >= limit:
                return None
            due_s = None if self._arrivals_s is None else next(self._arrivals_s)
            moment_s = self._now_s() if due_s is None else due_s
            if self._load.duration_s is not None and moment_s >= self._load.duration_s:
                self._taken = limit
                return None
            self._taken += 1
            asked_s = self._clock.now()
            ask = feed.take()
            self.tally.waited_for_feed_s += self._clock.now() - asked_s
            return None if ask is None else (ask, due_s)

    def _ask(self, ask: Ask, due_s: float) -> None:
        with self._lock:
            self.tally.in_flight[ask.question.index] = (ask, due_s)
        sample, gaps_ms = measure(self._asked, ask, due_s=due_s, now=self._now_s)
        with self._lock:
            if self.tally.in_flight.pop(ask.question.index, None) is None:
                return  # settled already
            self.tally.add(sample)
            self.tally.gaps.add(gaps_ms)
            self._watch(sample)

    def _watch(self, sample: Sample) -> None:
        if sample.failure and sample.failure.code == Busy.code:
            return
        self.tally.failures_in_a_row = self.tally.failures_in_a_row + 1 if sample.failure else 0
        if self.tally.failures_in_a_row >= self._patience and not self._stop.is_set():
            self.tally.ending = "gave up"
            self._stop.set()

    def _now_s(self) -> float:
        return self._clock.now() - self._start_s


def _lost(ask: Ask, due_s: float, now_s: float) -> Sample:
    left = Cancelled("the benchmark was interrupted while this was being answered")
    return Sample(
        ask=ask.question.index,
        turn=len(ask.question.turns),
        repeated=ask.question.repeated,
        due_s=due_s,
        started_s=due_s,
        ended_s=now_s,
        failure=Failure(left.code, str(left), left.exit_code),
    )
