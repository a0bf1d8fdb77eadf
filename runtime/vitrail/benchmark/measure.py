"""What is measured of each request, and how a stage's requests are summed up.

Names and formulas are those of AIPerf's metrics reference; `time_per_output_token` is MLPerf's name for what AIPerf calls
`inter_token_latency`. Percentiles interpolate linearly between the two nearest ranks (Hyndman and Fan's type 7, numpy's
default): the p-th of n sorted values lies at rank 1 + (n - 1) p / 100. `std` is that of the population.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import Any, NamedTuple, Protocol

import numpy as np

from vitrail.benchmark.workload import Ask
from vitrail.core import Delta, Report
from vitrail.errors import Cancelled, DeadlineExceeded, ServerError, VitrailError

# Gaps between deltas that a stage keeps; beyond, an evenly drawn sample of them.
GAPS_KEPT = 1 << 18
UNEXPECTED = "unexpected"


class Deltas(Protocol):
    def __iter__(self) -> Any: ...

    def close(self) -> None: ...


class Asked(Protocol):
    """What an engine and a client have in common."""

    def stream(self, messages: Any, **options: Any) -> Deltas: ...


class Failure(NamedTuple):
    """Why a request has no complete answer: VitrailError's code (or "unexpected"), its message and exit code."""

    code: str
    message: str
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One request. Times in seconds since the stage's start: when it was due, when it was sent, when tokens came."""

    ask: int
    turn: int
    repeated: bool
    due_s: float
    started_s: float
    ended_s: float
    first_s: float | None = None
    second_s: float | None = None
    tokens: int = 0
    report: Report | None = None
    failure: Failure | None = None

    @property
    def ttft_ms(self) -> float | None:
        """From the moment the request was due, not from when the client got round to it."""
        return None if self.first_s is None else 1e3 * (self.first_s - self.due_s)

    @property
    def latency_ms(self) -> float:
        return 1e3 * (self.ended_s - self.due_s)

    @property
    def tpot_ms(self) -> float | None:
        """Milliseconds per token after the first; None where there is no second."""
        if self.first_s is None or self.tokens < 2:
            return None
        return 1e3 * (self.ended_s - self.first_s) / (self.tokens - 1)

    @property
    def lag_ms(self) -> float:
        return 1e3 * (self.started_s - self.due_s)

    def phase_ms(self, name: str) -> float | None:
        return None if self.report is None else float(getattr(self.report.timings, name))

    @property
    def other_ms(self) -> float | None:
        """What no phase accounts for: the wire, Triton's scheduling, waiting behind other steps."""
        if self.ttft_ms is None or self.report is None:
            return None
        return max(0.0, self.ttft_ms - self.lag_ms - sum(self.phase_ms(name) or 0.0 for name in PHASES))


PHASES = ("preprocess_ms", "vision_ms", "queue_ms", "prefill_ms")


class Metric(NamedTuple):
    """A figure of one request; None where it has none. Those not `shown` are in JSON and CSV only."""

    name: str
    unit: str
    value: Callable[[Sample], float | None]
    shown: bool = True


def _per_user(sample: Sample) -> float | None:
    return 1e3 / sample.tpot_ms if sample.tpot_ms else None


def _second_ms(sample: Sample) -> float | None:
    if sample.first_s is None or sample.second_s is None:
        return None
    return 1e3 * (sample.second_s - sample.first_s)


def _of_report(read: Callable[[Report], float]) -> Callable[[Sample], float | None]:
    return lambda sample: None if sample.report is None else read(sample.report)


def _phase(name: str) -> Metric:
    return Metric(name, "ms", lambda sample: sample.phase_ms(name))


METRICS = (
    Metric("time_to_first_token", "ms", lambda sample: sample.ttft_ms),
    Metric("time_to_second_token", "ms", _second_ms),
    Metric("inter_token_latency", "ms", lambda sample: sample.tpot_ms, shown=False),
    Metric("time_per_output_token", "ms", lambda sample: sample.tpot_ms),
    Metric("request_latency", "ms", lambda sample: sample.latency_ms),
    Metric("output_token_throughput_per_user", "tokens/sec/user", _per_user, shown=False),
    Metric("input_sequence_length", "tokens", _of_report(lambda report: report.prompt_tokens)),
    Metric("output_sequence_length", "tokens", _of_report(lambda report: report.completion_tokens)),
    Metric("tiles", "tiles", _of_report(lambda report: sum(image.tiles for image in report.images))),
    Metric("visual_tokens", "tokens", _of_report(lambda report: report.visual_tokens)),
    Metric("reused_tiles", "tiles", _of_report(lambda report: report.reused_tiles)),
    Metric("reused_tokens", "tokens", _of_report(lambda report: report.reused_tokens)),
    *(_phase(name) for name in PHASES),
    Metric("other_ms", "ms", lambda sample: sample.other_ms),
    Metric("schedule_lag_ms", "ms", lambda sample: sample.lag_ms, shown=False),
)
GAP_METRIC = "inter_chunk_latency"


@dataclass(slots=True)
class Gaps:
    """Milliseconds between one delta with tokens and the next, over all requests; a fair sample where they are many."""

    kept: list[float] = field(default_factory=list)
    seen: int = 0
    limit: int = GAPS_KEPT
    _random: Random = field(default_factory=lambda: Random(0))  # noqa: S311 - no secret

    def add(self, gaps_ms: Iterable[float]) -> None:
        """Vitter's algorithm R: each gap ever seen is kept with the same chance."""
        for gap_ms in gaps_ms:
            self.seen += 1
            if len(self.kept) < self.limit:
                self.kept.append(gap_ms)
            elif (place := self._random.randrange(self.seen)) < self.limit:
                self.kept[place] = gap_ms


@dataclass(frozen=True, slots=True)
class Summary:
    """A metric over a stage."""

    avg: float
    min: float
    max: float
    std: float
    p50: float
    p90: float
    p99: float
    count: int


def summarize(values: Sequence[float]) -> Summary | None:
    """None for no values."""
    if not values:
        return None
    array = np.asarray(values, np.float64)
    p50, p90, p99 = np.percentile(array, (50, 90, 99), method="linear").tolist()
    return Summary(
        avg=float(array.mean()),
        min=float(array.min()),
        max=float(array.max()),
        std=float(array.std()),
        p50=p50,
        p90=p90,
        p99=p99,
        count=len(array),
    )


@dataclass(slots=True)
class _Arrivals:
    """What came in so far."""

    times_s: list[float] = field(default_factory=list)
    tokens: int = 0
    report: Report | None = None
    last: Delta | None = None

    def add(self, delta: Delta, *, now_s: float) -> None:
        if delta.token_ids:
            self.times_s.append(now_s)
            self.tokens += len(delta.token_ids)
        self.report = delta.report or self.report
        self.last = delta

    def check(self, ask: Ask) -> None:
        """Raise what keeps this from being the whole answer that was asked for."""
        if self.report is None or self.last is None:
            raise ServerError("the answer broke off without its report")
        if self.last.finish_reason == "deadline":
            raise DeadlineExceeded("the answer was cut off by its deadline; raise --timeout")
        if self.last.finish_reason == "cancelled":
            raise Cancelled("the answer was cancelled")
        if self.tokens != self.report.completion_tokens:
            raise ServerError(
                f"the answer came in {self.tokens} tokens but reports {self.report.completion_tokens}"
            )
        if ask.options.get("ignore_eos") and self.tokens != ask.options["max_tokens"]:
            raise ServerError(
                f"the answer has {self.tokens} tokens, {ask.options['max_tokens']} were asked for"
            )

    @property
    def gaps_ms(self) -> list[float]:
        return [1e3 * (later - earlier) for earlier, later in pairwise(self.times_s)]


def measure(
    asked: Asked, ask: Ask, *, due_s: float, now: Callable[[], float]
) -> tuple[Sample, Sequence[float]]:
    """Ask, and time the answer: the sample and the gaps in ms. Whatever fails becomes the sample's failure."""
    arrived = _Arrivals()
    started_s = now()
    failure = None
    try:
        with closing(asked.stream(ask.messages, **ask.options)) as deltas:
            for delta in deltas:
                arrived.add(delta, now_s=now())
        ended_s = now()
        arrived.check(ask)
    except VitrailError as error:
        ended_s = now()
        failure = Failure(error.code, str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001 - a benchmark counts what it did not foresee
        ended_s = now()
        failure = Failure(UNEXPECTED, f"{type(error).__name__}: {error}", 1)
    times_s = arrived.times_s
    sample = Sample(
        ask=ask.question.index,
        turn=len(ask.question.turns),
        repeated=ask.question.repeated,
        due_s=due_s,
        started_s=started_s,
        ended_s=ended_s,
        first_s=times_s[0] if times_s else None,
        second_s=times_s[1] if len(times_s) > 1 else None,
        tokens=arrived.tokens,
        report=arrived.report,
        failure=failure,
    )
    return sample, arrived.gaps_ms if failure is None else ()
