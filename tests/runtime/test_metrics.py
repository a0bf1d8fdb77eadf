"""What one request's events add to a server's series."""

import threading
from collections import defaultdict

import numpy as np
import pytest
from tests.runtime.decoding import Clock, Sink, drain, make, request

from vitrail import metrics
from vitrail.core import Delta, Report, Timings
from vitrail.errors import Busy, VitrailError
from vitrail.features import FeatureCache
from vitrail.metrics import DECODER_SERIES, FEATURE_SERIES, Watch, decoder_readings, feature_readings
from vitrail.session.fake import FakeDecoder
from vitrail.triton.processes import wait_until

TIMINGS = Timings(
    preprocess_ms=100, vision_ms=200, queue_ms=50, prefill_ms=150, decode_ms=300, ttft_ms=500, total_ms=800
)
REPORT = Report(prompt_tokens=90, completion_tokens=4, timings=TIMINGS)


class Notes:
    """An observer that keeps everything, by series."""

    def __init__(self):
        self.values, self.labels = defaultdict(list), defaultdict(list)

    def add(self, series, value=1.0, label=""):
        self.values[series].append(value)
        self.labels[series].append(label)


@pytest.fixture
def notes():
    return Notes()


def test_times_count_from_the_arrival_at_the_server(notes):
    Watch(notes)(Delta(finish_reason="stop", report=REPORT))
    seconds = {series.name.removeprefix("vitrail_"): values for series, values in notes.values.items()}
    assert seconds["time_to_first_token_seconds"] == [pytest.approx(0.4)]
    assert seconds["e2e_request_latency_seconds"] == [pytest.approx(0.7)]
    assert seconds["request_vision_time_seconds"] == [pytest.approx(0.2)]
    assert seconds["request_queue_time_seconds"] == [pytest.approx(0.05)]
    assert seconds["request_prefill_time_seconds"] == [pytest.approx(0.15)]
    assert seconds["request_decode_time_seconds"] == [pytest.approx(0.3)]
    assert (seconds["request_prompt_tokens"], seconds["request_generation_tokens"]) == ([90], [4])


def test_gaps_are_each_answer_s_own(notes):
    clock = Clock(0.0)
    watch = Watch(notes, clock=clock)
    for at_s, index in ((1.0, 0), (1.5, 1), (2.0, 0), (2.75, 1), (4.0, 0)):
        clock.now_s = at_s
        watch(Delta(index, token_ids=(7,)))
    assert notes.values[metrics.GAP] == [1.0, 1.25, 2.0]
    watch(Delta(0, finish_reason="stop"))
    watch(Delta(1, finish_reason="length"))
    assert notes.values[metrics.TPOT] == [1.5, 1.25]
    assert notes.labels[metrics.ANSWERS] == ["stop", "length"]


def test_who_waited_in_vain_has_no_time_to_first_token(notes):
    report = Report(9, 0, timings=Timings(queue_ms=70, total_ms=70))
    Watch(notes)(Delta(finish_reason="cancelled", report=report))
    assert notes.values[metrics.QUEUE] == [0.07]
    assert notes.values[metrics.CANCELS] == [1.0]
    assert not {metrics.TTFT, metrics.PREFILL, metrics.DECODE, metrics.VISION, metrics.TPOT} & set(
        notes.values
    )


def test_an_error_counts_by_its_code_and_nothing_after_the_end(notes):
    endings = []
    watch = Watch(notes, on_end=endings.append)
    watch(Busy("full"))
    watch(Delta(finish_reason="stop", report=REPORT))
    assert notes.labels == {metrics.ERRORS: ["busy"]}
    (ending,) = endings
    assert (ending.report, str(ending.error), ending.finish_reasons) == (None, "full", ())


def test_names_are_the_ecosystem_s_and_no_two_the_same():
    series = (*DECODER_SERIES, *FEATURE_SERIES)
    assert len({each.name for each in series}) == len(series)
    for each in series:
        assert each.name.startswith("vitrail_")
        assert (each.kind == "counter") == each.name.endswith("_total")
        assert bool(each.buckets) == (each.kind == "histogram")
        assert list(each.buckets) == sorted(set(each.buckets))


def test_every_code_of_a_request_s_error_is_one_that_exists():
    def kinds(kind):
        return {kind.code}.union(*map(kinds, kind.__subclasses__()))

    assert set(metrics.ERRORS.values) <= kinds(VitrailError)


def test_readings_of_a_decoder_name_only_what_is_published():
    decoder, sink = make(slots=2), Sink()
    decoder.submit(request(1, tokens=7, max_tokens=4), sink)
    drain(decoder)
    read = decoder_readings(decoder.statistics, at_vision=3, kv_bytes_per_token=10, capacity=64)
    assert set(read) <= set(DECODER_SERIES)
    assert read[metrics.PROMPT_TOKENS] == 7
    assert read[metrics.GENERATION_TOKENS] == 4
    assert read[metrics.AT_VISION] == 3
    # The last token that was made is not cached.
    assert read[metrics.KV_BYTES] == (7 + 3) * 10
    assert decoder.statistics.turns == 0  # it has no thread


def test_turns_go_on_while_a_decoder_works_and_stand_still_in_a_step_that_does_not_end():
    class Stuck(FakeDecoder):
        def forward(self, step):
            if len(passes) == 3:
                reached.set()
                gate.wait(60)
            passes.append(step)
            return super().forward(step)

    passes, reached, gate = [], threading.Event(), threading.Event()
    decoder, sink = make(Stuck()), Sink()
    decoder.start()
    decoder.submit(request(1, tokens=4, max_tokens=8), sink)
    assert reached.wait(60)
    stuck = decoder.statistics
    assert stuck.live_requests == 1
    assert stuck.turns == len(passes) + 1
    gate.set()
    assert wait_until(lambda: sink.finals, within_s=60)
    assert decoder.statistics.turns > stuck.turns
    decoder.close()


def test_readings_of_a_feature_cache_follow_it():
    class Bright:
        def encode(self, tiles):
            return tiles.reshape(len(tiles), -1)[:, :1].astype(np.float32)

    cache = FeatureCache(Bright(), limit_bytes=100)
    tiles = np.arange(2, dtype=np.uint8).reshape(2, 1, 1, 1)
    cache.encode(tiles)
    cache.encode(tiles)
    read = feature_readings(cache)
    assert set(read) == set(FEATURE_SERIES)
    assert (read[metrics.FEATURE_HITS], read[metrics.FEATURE_MISSES]) == (2, 2)
    assert (read[metrics.FEATURE_BYTES], read[metrics.FEATURE_LIMIT]) == (8, 100)
