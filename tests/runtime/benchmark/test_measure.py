import pytest
from tests.runtime.benchmark.fakes import Answers, FakeClock, asks, report

from vitrail.benchmark.measure import METRICS, Gaps, Sample, measure, summarize
from vitrail.core import Delta
from vitrail.errors import Busy, PromptTooLong

SAMPLE = Sample(
    ask=0,
    turn=1,
    repeated=False,
    due_s=1.0,
    started_s=1.2,
    ended_s=3.0,
    first_s=2.0,
    second_s=2.3,
    tokens=5,
    report=report(5, preprocess_ms=50, vision_ms=300, queue_ms=10, prefill_ms=200),
)


def test_percentiles_interpolate_between_the_nearest_ranks():
    summary = summarize([5, 1, 4, 2, 3])
    assert (summary.avg, summary.min, summary.max, summary.count) == (3, 1, 5, 5)
    assert (summary.p50, summary.p90, summary.p99) == pytest.approx((3, 4.6, 4.96))
    assert summary.std == pytest.approx(2**0.5)


def test_one_value_is_every_percentile_and_no_value_is_none():
    assert summarize([7.0]).p99 == 7.0
    assert summarize([]) is None


def test_metrics_of_a_request_count_from_the_moment_it_was_due():
    values = {metric.name: metric.value(SAMPLE) for metric in METRICS}
    assert values == pytest.approx(
        {
            "time_to_first_token": 1000,
            "time_to_second_token": 300,
            "inter_token_latency": 250,
            "time_per_output_token": 250,
            "request_latency": 2000,
            "output_token_throughput_per_user": 4,
            "input_sequence_length": 40,
            "output_sequence_length": 5,
            "tiles": 7,
            "visual_tokens": 28,
            "reused_tiles": 7,
            "reused_tokens": 30,
            "preprocess_ms": 50,
            "vision_ms": 300,
            "queue_ms": 10,
            "prefill_ms": 200,
            "other_ms": 240,
            "schedule_lag_ms": 200,
        }
    )


def test_phases_lag_and_the_rest_add_up_to_the_time_to_first_token():
    values = {metric.name: metric.value(SAMPLE) for metric in METRICS}
    names = ("schedule_lag_ms", "preprocess_ms", "vision_ms", "queue_ms", "prefill_ms", "other_ms")
    assert sum(values[name] for name in names) == pytest.approx(values["time_to_first_token"])


def test_few_gaps_are_all_kept_and_many_are_sampled_evenly_in_bounded_memory():
    gaps = Gaps(limit=500)
    gaps.add(range(400))
    assert gaps.kept == list(range(400))
    gaps.add(range(400, 100_000))
    assert (len(gaps.kept), gaps.seen) == (500, 100_000)
    assert sum(gaps.kept) / 500 == pytest.approx(50_000, rel=0.1)


def asked_once(*scripts, **options):
    clock = FakeClock(now_s=10.0)
    answers = Answers(clock, *scripts)
    return measure(answers, next(asks(**options)), due_s=9.5, now=clock.now)


def test_an_answer_is_timed_token_by_token():
    sample, gaps_ms = asked_once([1.0, 0.25, 0.5])
    assert (sample.due_s, sample.started_s, sample.first_s, sample.second_s) == (9.5, 10.0, 11.0, 11.25)
    assert (sample.ended_s, sample.tokens, sample.failure) == (11.75, 3, None)
    assert gaps_ms == [250.0, 500.0]


@pytest.mark.parametrize(
    ("error", "code", "exit_code"),
    [
        (Busy("full"), "busy", 5),
        (PromptTooLong("long"), "prompt_too_long", 2),
        (KeyError("x"), "unexpected", 1),
    ],
)
def test_whatever_fails_is_counted_by_its_code(error, code, exit_code):
    sample, gaps_ms = asked_once(error)
    assert (sample.failure.code, sample.failure.exit_code, gaps_ms) == (code, exit_code, ())


class Scripted:
    def __init__(self, *deltas):
        self.deltas = deltas

    def stream(self, messages, **options):
        yield from self.deltas


@pytest.mark.parametrize(
    ("deltas", "code"),
    [
        ([], "server"),
        ([Delta(token_ids=(1,))], "server"),
        ([Delta(token_ids=(1,)), Delta(finish_reason="deadline", report=report(1))], "deadline"),
        ([Delta(finish_reason="cancelled", report=report(0))], "cancelled"),
        ([Delta(token_ids=(1,)), Delta(finish_reason="length", report=report(9))], "server"),
        ([Delta(token_ids=(1,)), Delta(finish_reason="stop", report=report(1))], "server"),
    ],
    ids=["nothing", "no report", "deadline", "cancelled", "tokens do not add up", "too short"],
)
def test_an_answer_that_is_not_whole_is_a_failure(deltas, code):
    ask = next(asks(ignore_eos=True))
    sample, _ = measure(Scripted(*deltas), ask, due_s=0, now=FakeClock().now)
    assert sample.failure.code == code


def test_a_short_answer_is_whole_where_the_model_may_end_it():
    deltas = [Delta(token_ids=(1,)), Delta(finish_reason="stop", report=report(1))]
    sample, _ = measure(Scripted(*deltas), next(asks()), due_s=0, now=FakeClock().now)
    assert sample.failure is None
