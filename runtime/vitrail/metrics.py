"""What a server counts: its series, under the ecosystem's names, and what one request's events add to them. Pure."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, get_args

from vitrail.core import FinishReason
from vitrail.errors import VitrailError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vitrail.core import Delta, Report
    from vitrail.decoder import Statistics
    from vitrail.features import FeatureCache

_LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 600)
_PER_TOKEN_S = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
_TOKENS = tuple(float(2**power) for power in range(16))
_TILES = (1, 2, 4, 7, 8, 13, 16, 26, 40, 64, 128)
# Of the error tree, what a request can end with.
_CODES = (
    "invalid_input",
    "option",
    "prompt_too_long",
    "busy",
    "cancelled",
    "deadline",
    "server",
    "internal",
)


@dataclass(frozen=True, slots=True)
class Series:
    """One metric family. `label`: what its children are told apart by, `values` those that are there from the start."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    buckets: tuple[float, ...] = ()
    label: str = ""
    values: tuple[str, ...] = ("",)


def _histogram(name: str, buckets: tuple[float, ...], text: str) -> Series:
    return Series(f"vitrail_{name}", "histogram", text, buckets)


def _counter(name: str, text: str, *, label: str = "", values: tuple[str, ...] = ("",)) -> Series:
    return Series(f"vitrail_{name}_total", "counter", text, label=label, values=values)


def _gauge(name: str, text: str) -> Series:
    return Series(f"vitrail_{name}", "gauge", text)


TTFT = _histogram("time_to_first_token_seconds", _LATENCY_S, "From a request's arrival to its first token.")
GAP = _histogram(
    "inter_token_latency_seconds", _PER_TOKEN_S, "From one token of an answer to the next, as they are made."
)
TPOT = _histogram(
    "request_time_per_output_token_seconds", _PER_TOKEN_S, "Mean time of an answer's tokens after the first."
)
LATENCY = _histogram("e2e_request_latency_seconds", _LATENCY_S, "From a request's arrival to its end.")
VISION = _histogram(
    "request_vision_time_seconds", _LATENCY_S, "What a request's pictures took, waiting for vision included."
)
QUEUE = _histogram("request_queue_time_seconds", _LATENCY_S, "What a request waited for a slot.")
PREFILL = _histogram("request_prefill_time_seconds", _LATENCY_S, "From a slot to the first token.")
DECODE = _histogram("request_decode_time_seconds", _LATENCY_S, "From the first token to the end.")
REQUEST_TILES = _histogram("request_tiles", _TILES, "Tiles of a request's pictures.")
REQUEST_PROMPT = _histogram("request_prompt_tokens", _TOKENS, "Prompt tokens of a request.")
REQUEST_GENERATION = _histogram("request_generation_tokens", _TOKENS, "Tokens made for a request.")

SLOTS = _gauge("slots", "Answers that can be written at once.")
RUNNING = _gauge("num_requests_running", "Answers that hold a slot.")
WAITING = _gauge("num_requests_waiting", "Answers that wait for a slot.")
LIVE = _gauge("num_requests_live", "Requests that the decoder has taken and not ended.")
AT_VISION = _gauge("num_requests_vision", "Requests of the direct route whose pictures are not all encoded.")
KV_BYTES = _gauge("kv_cache_bytes", "What the KV cache holds, prompts kept for their beginnings included.")
KV_LIMIT = _gauge("kv_cache_limit_bytes", "What the KV cache can hold.")
FEATURE_BYTES = _gauge("feature_cache_bytes", "Visual features that are kept.")
FEATURE_LIMIT = _gauge("feature_cache_limit_bytes", "Visual features that are kept at most.")

PROMPT_TOKENS = _counter("prompt_tokens", "Prompt tokens, those found in the cache included.")
GENERATION_TOKENS = _counter("generation_tokens", "Tokens made.")
PREFILL_STEPS = _counter("prefill_steps", "Forward passes over a part of a prompt.")
DECODE_STEPS = _counter("decode_steps", "Forward passes over one token of each running answer.")
PREFIX_HITS = _counter("prefix_cache_hits", "Prompt tokens that were in the KV cache already.")
PREFIX_MISSES = _counter("prefix_cache_misses", "Prompt tokens that were computed.")
FEATURE_HITS = _counter("feature_cache_hits", "Tiles whose features were known.")
FEATURE_MISSES = _counter("feature_cache_misses", "Tiles that were encoded.")
TILES = _counter("tiles", "Tiles of all requests.")
CANCELS = _counter("requests_cancelled", "Requests that their client cancelled.")
ANSWERS = _counter(
    "request_success", "Answers, by why they ended.", label="finished_reason", values=get_args(FinishReason)
)
ERRORS = _counter("request_errors", "Requests that ended in an error.", label="code", values=_CODES)

DECODER_SERIES = (
    *(TTFT, GAP, TPOT, LATENCY, VISION, QUEUE, PREFILL, DECODE),
    *(REQUEST_TILES, REQUEST_PROMPT, REQUEST_GENERATION),
    *(SLOTS, RUNNING, WAITING, LIVE, AT_VISION, KV_BYTES, KV_LIMIT),
    *(PROMPT_TOKENS, GENERATION_TOKENS, PREFILL_STEPS, DECODE_STEPS, PREFIX_HITS, PREFIX_MISSES),
    *(TILES, CANCELS, ANSWERS, ERRORS),
)
FEATURE_SERIES = (FEATURE_BYTES, FEATURE_LIMIT, FEATURE_HITS, FEATURE_MISSES)


class Observer(Protocol):
    """Where observations go."""

    def add(self, series: Series, value: float = 1.0, label: str = "") -> None:
        """Count `value`, or observe it in a histogram. From any thread; returns at once and never raises."""
        ...


class Ending(NamedTuple):
    """How a request ended: with a report, or an error, and why each of its answers did."""

    report: Report | None
    error: VitrailError | None
    finish_reasons: tuple[FinishReason, ...]


@dataclass(slots=True)
class _Pace:
    """An answer's tokens so far, by the clock."""

    first_s: float
    last_s: float
    tokens: int = 1

    @property
    def per_token_s(self) -> float | None:
        return (self.last_s - self.first_s) / (self.tokens - 1) if self.tokens > 1 else None


class Watch:
    """One request's events, told to an observer as they come; what comes after the last one is nobody's.

    Times count from the request's arrival at the server: what its client did before is the client's own.
    """

    def __init__(
        self,
        observer: Observer,
        *,
        on_end: Callable[[Ending], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._observer = observer
        self._on_end = on_end
        self._clock = clock
        self._paces: dict[int, _Pace] = {}
        self._reasons: list[FinishReason] = []
        self._ended = False

    def __call__(self, event: Delta | VitrailError) -> None:
        if self._ended:
            return
        if isinstance(event, VitrailError):
            self._observer.add(ERRORS, label=event.code)
            self._end(report=None, error=event)
            return
        if event.token_ids:
            self._count_token(event.index)
        if event.finish_reason is not None:
            self._finish(event.index, event.finish_reason)
        if event.report is not None:
            self._account(event.report)
            self._end(report=event.report, error=None)

    def _count_token(self, index: int) -> None:
        now_s, pace = self._clock(), self._paces.get(index)
        if pace is None:
            self._paces[index] = _Pace(now_s, now_s)
            return
        self._observer.add(GAP, now_s - pace.last_s)
        pace.last_s = now_s
        pace.tokens += 1

    def _finish(self, index: int, reason: FinishReason) -> None:
        self._reasons.append(reason)
        self._observer.add(ANSWERS, label=reason)
        pace = self._paces.get(index)
        if pace is not None and pace.per_token_s is not None:
            self._observer.add(TPOT, pace.per_token_s)

    def _account(self, report: Report) -> None:
        add, times = self._observer.add, report.timings
        if "cancelled" in self._reasons:
            add(CANCELS)
        add(LATENCY, (times.total_ms - times.preprocess_ms) / 1000)
        add(QUEUE, times.queue_ms / 1000)
        add(REQUEST_PROMPT, report.prompt_tokens)
        add(REQUEST_GENERATION, report.completion_tokens)
        if times.vision_ms:
            add(VISION, times.vision_ms / 1000)
        if report.completion_tokens:
            add(TTFT, (times.ttft_ms - times.preprocess_ms) / 1000)
            add(PREFILL, times.prefill_ms / 1000)
            add(DECODE, times.decode_ms / 1000)

    def _end(self, *, report: Report | None, error: VitrailError | None) -> None:
        self._ended = True
        self._on_end(Ending(report, error, tuple(self._reasons)))


def decoder_readings(
    now: Statistics, *, at_vision: int, kv_bytes_per_token: int, capacity: int
) -> Mapping[Series, float]:
    """A decoder's gauges, and its counters' totals. capacity: tokens of a slot."""
    totals = now.totals
    return {
        SLOTS: now.slots,
        RUNNING: now.slots_used,
        WAITING: now.queued_answers,
        LIVE: now.live_requests,
        AT_VISION: at_vision,
        KV_BYTES: now.cached_tokens * kv_bytes_per_token,
        KV_LIMIT: now.slots * capacity * kv_bytes_per_token,
        PROMPT_TOKENS: totals.prompt_tokens + totals.reused_tokens,
        GENERATION_TOKENS: totals.completion_tokens,
        PREFILL_STEPS: totals.prefill_steps,
        DECODE_STEPS: totals.decode_steps,
        PREFIX_HITS: totals.reused_tokens,
        PREFIX_MISSES: totals.prompt_tokens,
    }


def feature_readings(cache: FeatureCache) -> Mapping[Series, float]:
    """A feature cache's gauges, and its counters' totals."""
    return {
        FEATURE_BYTES: cache.size_bytes,
        FEATURE_LIMIT: cache.limit_bytes,
        FEATURE_HITS: cache.hits,
        FEATURE_MISSES: cache.misses,
    }
