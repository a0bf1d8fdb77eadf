"""How observations, spans and a pulse leave a model's process, without Triton."""

import logging
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests.repository.collector import collecting

from vitrail.core import Report, Timings
from vitrail.errors import OptionError
from vitrail.metrics import ANSWERS, FEATURE_HITS, LIVE, TTFT, Ending
from vitrail.triton.metering import SAMPLE, Families, Meter, Unmetered, open_meter
from vitrail.triton.options import ServerOptions, command
from vitrail.triton.processes import Stub, wait_until
from vitrail.triton.pulse import VARIABLE, Counted, Work, keep_pulse, read_pulse
from vitrail.triton.supervisor import Silence
from vitrail.triton.tracing import HEADERS_VARIABLE, URL_VARIABLE, Tracer, collector_url, open_tracer

CONTEXT = '{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}'
ENDING = Ending(Report(9, 4, timings=Timings(prefill_ms=5, total_ms=7)), None, ("stop",))


class Backend:
    """What the python backend offers for metrics: a family's children, and what happened to them."""

    def __init__(self):
        outer = self
        self.calls, self.made = Counter(), []

        class Child:
            def __init__(self, name, labels):
                self.key = (name, tuple(sorted(labels.items())))
                self.increment = lambda value: outer.count("increment", self.key, value)
                self.observe = lambda value: outer.count("observe", self.key, value)
                self.set = lambda value: outer.count("set", self.key, value)

        class MetricFamily:
            COUNTER, GAUGE, HISTOGRAM = range(3)

            def __init__(self, *, name, description, kind):
                self.name = name

            def Metric(self, *, labels, buckets=None):
                outer.made.append((self.name, buckets))
                return Child(self.name, labels)

        self.MetricFamily = MetricFamily

    def count(self, what, key, value):
        self.calls[(what, *key)] += value

    def value(self, what, series, **labels):
        return self.calls[what, series.name, tuple(sorted(labels.items()))]


def test_counts_are_added_up_observations_are_not_and_totals_grow_by_what_is_new():
    backend, read = Backend(), {FEATURE_HITS: 5, LIVE: 2}
    meter = Meter(
        Families(backend, (ANSWERS, TTFT, FEATURE_HITS, LIVE), model_name="m"),
        read=lambda: read,
        interval_s=0.01,
    )
    for _ in range(3):
        meter.add(ANSWERS, label="stop")
    meter.add(TTFT, 0.5)
    assert wait_until(lambda: backend.value("increment", FEATURE_HITS, model_name="m") == 5, within_s=60)
    read[FEATURE_HITS] = 9
    meter.close()
    assert backend.value("increment", ANSWERS, model_name="m", finished_reason="stop") == 3
    assert backend.value("observe", TTFT, model_name="m") == 0.5
    assert backend.value("increment", FEATURE_HITS, model_name="m") == 9
    assert backend.value("set", LIVE, model_name="m") == 2


def test_without_a_thread_a_meter_publishes_when_it_is_told():
    backend, read = Backend(), {FEATURE_HITS: 5}
    meter = Meter(Families(backend, (FEATURE_HITS,), model_name="m"), read=lambda: read, interval_s=None)
    assert not backend.calls
    meter.publish()
    assert backend.value("increment", FEATURE_HITS, model_name="m") == 5
    read[FEATURE_HITS] = 7
    meter.close()
    assert backend.value("increment", FEATURE_HITS, model_name="m") == 7


def test_of_very_many_observations_a_histogram_gets_an_even_sample():
    backend = Backend()
    meter = Meter(Families(backend, (TTFT,), model_name="m"), read=dict, interval_s=60)
    for value in range(10_000):
        meter.add(TTFT, value)
    meter.close()
    assert backend.value("observe", TTFT, model_name="m") / SAMPLE == pytest.approx(5000, rel=0.5)


def test_series_are_there_from_the_start_with_all_their_labels():
    backend = Backend()
    Families(backend, (ANSWERS, TTFT), model_name="m")
    names = Counter(name for name, _ in backend.made)
    assert names == {ANSWERS.name: 4, TTFT.name: 1}
    assert dict(backend.made)[TTFT.name] == list(TTFT.buckets)


def test_a_server_without_metrics_serves_and_says_so(caplog):
    class Refuses:
        class MetricFamily:
            COUNTER = 0

            def __init__(self, **_):
                raise RuntimeError("metrics are off")

    meter = open_meter(Refuses, (ANSWERS,), model_name="m", read=dict, environment={})
    meter.add(ANSWERS)
    meter.close()
    assert isinstance(meter, Unmetered)
    assert "metrics are off" in caplog.text


@pytest.mark.parametrize(("series", "variables"), [((), {}), ((ANSWERS,), {"VITRAIL_METRICS": "off"})])
def test_what_is_off_or_has_no_series_asks_nothing_of_triton(series, variables):
    meter = open_meter(None, series, model_name="m", read=dict, environment=variables)
    assert isinstance(meter, Unmetered)


def test_metrics_that_fail_end_with_one_line_and_harm_nobody(caplog):
    backend = Backend()
    backend.count = lambda *_: 1 / 0
    meter = Meter(Families(backend, (TTFT,), model_name="m"), read=dict, interval_s=0.001)
    meter.add(TTFT, 1.0)
    meter._thread.join(60)
    meter.add(TTFT, 1.0)
    meter.close()
    assert caplog.text.count("metrics cannot be published any more") == 1


def test_spans_reach_the_collector_with_the_headers_that_are_asked_for():
    with collecting() as collector:
        variables = {URL_VARIABLE: f"{collector.url}/v1/traces", HEADERS_VARIABLE: "a=b, api-key = c=d"}
        tracer = open_tracer(variables, model_name="m", version="1")
        tracer.ending(CONTEXT, "me")(ENDING)
        tracer.close()
        ((path, headers, _),) = collector.requests
        assert (path, headers["a"], headers["api-key"]) == ("/v1/traces", "b", "c=d")
        assert [span["name"] for span in collector.of("me")] == ["chat m", "prefill"]


@pytest.mark.parametrize("context", [None, "", "{}", "nonsense", '{"traceparent": 7}', "[]"])
def test_a_request_that_is_not_traced_sends_nothing(context):
    with collecting() as collector:
        tracer = Tracer(collector.url, model_name="m", version="1")
        tracer.ending(context, "me")(ENDING)
        tracer.close()
        assert not collector.requests


def test_a_collector_that_is_away_costs_one_warning_and_is_served_when_it_is_back(caplog):
    with collecting() as collector:
        collector.status = 503
        tracer = Tracer(collector.url, model_name="m", version="1")
        end = tracer.ending(CONTEXT, "me")
        for count in (1, 2):
            end(ENDING)
            assert wait_until(lambda count=count: len(collector.requests) == count, within_s=60)
        collector.status = 200
        end(ENDING)
        assert wait_until(lambda: len(collector.requests) == 3, within_s=60)
        tracer.close()
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "status 503" in warnings[0].getMessage()


def test_a_collector_that_hangs_holds_nobody_up(monkeypatch, caplog):
    monkeypatch.setattr("vitrail.triton.tracing._CLOSE_TIMEOUT_S", 0.1)
    tracer, gate = Tracer("http://127.0.0.1:9", model_name="m", version="1"), threading.Event()
    tracer._send = lambda body: gate.wait(60)
    end = tracer.ending(CONTEXT, "me")
    for _ in range(3000):
        end(ENDING)
    tracer.close()
    gate.set()
    assert caplog.text.count("faster than they can be sent") == 1


@pytest.mark.parametrize("url", ["", "ftp://host", "http://", "http://host:port", "http://a b", "http://a,b"])
def test_a_collector_s_url_must_be_one(url):
    with pytest.raises(OptionError, match="no collector's URL"):
        ServerOptions(otel=url)


def test_a_url_without_a_path_is_the_standard_one_and_triton_gets_the_same():
    assert collector_url("host:4318") == "http://host:4318/v1/traces"
    assert collector_url("https://host/other") == "https://host/other"
    line = command(
        ServerOptions(otel="host:4318", otel_rate=10),
        binary=Path("b"),
        backends=(),
        repository=Path("r"),
        region_prefix="p",
        admin_key="k",
    )
    assert "--trace-config=opentelemetry,url=http://host:4318/v1/traces" in line
    assert "--trace-config=rate=10" in line


@pytest.mark.parametrize(
    ("name", "value"), [("otel_rate", 0), ("watchdog_s", -1.0), ("watchdog_s", float("nan"))]
)
def test_wrong_settings_are_named(name, value):
    with pytest.raises(OptionError, match=f"{name} is {value}"):
        ServerOptions(**{name: value})


def test_a_pulse_beats_while_idle_and_with_progress_and_stops_when_stuck(tmp_path, monkeypatch):
    monkeypatch.setattr("vitrail.triton.pulse.INTERVAL_S", 0.002)
    state, looks = [None], []

    def progress():
        looks.append(state[0])
        return looks[-1]

    def pulse():
        return read_pulse(tmp_path, "decoder")

    def await_looks(more):
        seen = len(looks)
        assert wait_until(lambda: len(looks) >= seen + more, within_s=60, every_s=0.002)

    def beats():
        before = pulse()
        return wait_until(lambda: pulse() != before, within_s=60, every_s=0.01)

    end = keep_pulse({VARIABLE: str(tmp_path)}, "decoder", progress)
    assert beats()
    state[0] = 1
    await_looks(3)  # until the one that found progress is over
    stuck = pulse()
    await_looks(20)
    assert pulse() == stuck
    state[0] = 2
    assert beats()
    end()


def test_nobody_s_pulse_is_no_file(tmp_path):
    keep_pulse({}, "decoder", lambda: None)()
    assert read_pulse(tmp_path, "decoder") is None


def test_every_run_of_the_encoder_is_progress_and_the_features_are_the_same():
    class Session:
        def encode(self, tiles):
            seen.append(work.progress())
            return tiles.astype(np.float32)

    seen, work = [], Work()
    counted = Counted(Session(), work, tiles_per_run=2)
    tiles = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
    assert work.progress() is None
    with work:
        np.testing.assert_array_equal(counted.encode(tiles), tiles)
        assert len(counted.encode(tiles[:0])) == 0
    assert len(set(seen)) == 4
    assert work.progress() is None


def test_an_execution_between_two_looks_at_the_work_is_told_once():
    work = Work()
    with work:
        pass
    assert work.progress() is not None
    assert work.progress() is None


def test_silence_is_counted_in_looks_and_starts_anew_with_every_beat():
    silence, stub = Silence(), Stub(1, 1, "decoder", "region")
    assert [silence.seconds(stub, pulse, passed_s=2.0) for pulse in (7, 7, 7, 8, 8, None)] == [
        0,
        2,
        4,
        0,
        2,
        0,
    ]
    assert silence.seconds(stub._replace(pid=2), 8, passed_s=2.0) == 0
