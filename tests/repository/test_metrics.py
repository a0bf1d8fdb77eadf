"""What a real server tells about itself: its series, its spans, and that a process that is stuck is ended."""

import json
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.repository.raw import ask, ints, text
from tests.repository.watching import Scrape, settled

from vitrail.client import Client
from vitrail.client.wire import delta_from_json
from vitrail.metrics import (
    ANSWERS,
    DECODER_SERIES,
    ERRORS,
    FEATURE_BYTES,
    FEATURE_HITS,
    FEATURE_MISSES,
    FEATURE_SERIES,
    GAP,
    GENERATION_TOKENS,
    KV_BYTES,
    LATENCY,
    PREFIX_HITS,
    PROMPT_TOKENS,
    REQUEST_TILES,
    TILES,
    TTFT,
    VISION,
)
from vitrail.triton.processes import wait_until

pytestmark = pytest.mark.server

DOCS = Path(__file__).parents[2] / "docs"
DASHBOARD = DOCS / "grafana.json"
PUBLISHED_WITHIN_S = 60.0
SERIES = re.compile(r"\b(?:vitrail|nv)_[a-z0-9_]+")


@pytest.fixture
def picture():
    return np.random.default_rng().integers(0, 256, (3, 3, 448, 448), np.uint8)


def grown(server, before, series, by, label=""):
    """Whether a series has grown by exactly so much, once it is published."""
    return wait_until(
        lambda: Scrape(server)(series, label) - before(series, label) == by, within_s=PUBLISHED_WITHIN_S
    )


def test_every_series_is_there_before_the_first_request_with_its_type(server):
    scraped = Scrape(server).text
    for series in (*DECODER_SERIES, *FEATURE_SERIES):
        assert f"# TYPE {series.name} {series.kind}\n" in scraped, series.name
        assert f"# HELP {series.name} {series.help}\n" in scraped
    assert 'model_name="internvl2-tiny"' in scraped


def test_requests_on_both_routes_are_counted_with_their_pictures_and_tokens(server, picture):
    before = settled(server)
    for model in ("internvl", "decoder"):
        options = text(json.dumps({"ignore_eos": True, "max_tokens": 6}))
        answer = ask(server.grpc_url, model, text_input="What is this?", tiles=picture, options=options)
        assert answer.error is None
    assert grown(server, before, ANSWERS, 2, 'finished_reason="length"')
    for series, by in (
        (TTFT, 2),
        (LATENCY, 2),
        (VISION, 2),
        (GAP, 10),
        (GENERATION_TOKENS, 12),
        (TILES, 6),
        (REQUEST_TILES, 2),
    ):
        assert grown(server, before, series, by), series.name
    # The second request has the same tiles, and but for its last token the same prompt.
    assert grown(server, before, FEATURE_MISSES, 3)
    assert grown(server, before, FEATURE_HITS, 3)
    now = Scrape(server)
    prompt_tokens = now(PROMPT_TOKENS) - before(PROMPT_TOKENS)
    assert now(PREFIX_HITS) - before(PREFIX_HITS) >= prompt_tokens / 2 - 1
    assert now(FEATURE_BYTES) > 0
    assert now(KV_BYTES) > 0


def test_errors_are_counted_by_their_code(server):
    before = settled(server)
    assert ask(server.grpc_url, "decoder", text_input="hi", max_tokens=ints(-1)).error
    assert grown(server, before, ERRORS, 1, 'code="option"')


@pytest.mark.parametrize("document", [DASHBOARD, DOCS / "metrics.md"], ids=lambda path: path.name)
def test_every_series_that_is_documented_is_exported(server, document):
    named = set(SERIES.findall(document.read_text(encoding="utf-8")))
    assert len(named) > 20
    assert not named - Scrape(server).names - {series.name for series in DECODER_SERIES}


def test_the_documented_table_is_the_catalogue():
    rows = [
        line for line in (DOCS / "metrics.md").read_text(encoding="utf-8").splitlines() if line[:3] == "| `"
    ]
    catalogue = (*DECODER_SERIES, *FEATURE_SERIES)
    labels = [f" by `{series.label}`" if series.label else "" for series in catalogue]
    assert rows == [
        f"| `{series.name}` | {series.kind}{label} | {series.help} |"
        for series, label in zip(catalogue, labels, strict=True)
    ]


def test_phases_arrive_as_spans_in_the_asker_s_trace_below_triton_s(server, collector, picture):
    trace_id = os.urandom(16).hex()
    headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    with Client(server.grpc_url, headers=headers) as client:
        contract = client.info()
        messages = [{"role": "user", "content": [{"type": "image", "image": _image(picture)}, _words("Hm?")]}]
        completion = client.chat(messages, max_tokens=4, ignore_eos=True)
    assert contract.name == "internvl2-tiny"

    def mine():
        return [(scope, span) for scope, span in collector.spans if span["traceId"] == trace_id]

    def own():
        return {span["name"]: span for scope, span in mine() if scope == "vitrail.decoder"}

    def tritons():
        """Name and id; the request's announcement is a decoder's span, too."""
        return {(span["name"], span["spanId"]) for scope, span in mine() if scope == "triton-server"}

    phases, models = {"vision", "queue", "prefill", "decode"}, {"vision_encoder", "projector", "internvl"}

    def missing():
        return (phases - set(own())) | (models - {name for name, _ in tritons()})

    assert wait_until(lambda: not missing(), within_s=60), missing()
    whole = own()["chat internvl2-tiny"]
    assert ("decoder", whole["parentSpanId"]) in tritons()
    assert wait_until(lambda: [name for name, _ in tritons()].count("decoder") == 2, within_s=60)
    for name in phases:
        span = own()[name]
        assert span["parentSpanId"] == whole["spanId"]
        took_ms = (int(span["endTimeUnixNano"]) - int(span["startTimeUnixNano"])) / 1e6
        assert took_ms == pytest.approx(getattr(completion.report.timings, f"{name}_ms"), abs=0.01)
    begins = [int(own()[name]["startTimeUnixNano"]) for name in ("vision", "queue", "prefill", "decode")]
    assert begins == sorted(begins)


def test_a_request_on_the_ensemble_route_has_been_here_since_it_announced_itself(server, picture):
    """As if it had waited for the vision encoder in Triton's queue."""
    question = {"request_id": "mine", "text_input": "hi", "tiles": picture, "max_tokens": ints(2)}
    assert ask(server.grpc_url, "decoder", announce="mine").error is None
    time.sleep(0.5)
    waited = delta_from_json(ask(server.grpc_url, "internvl", **question).deltas[-1])
    assert waited.report.timings.vision_ms > 500
    assert ask(server.grpc_url, "decoder", announce="mine").error is None
    time.sleep(0.5)
    late = delta_from_json(ask(server.grpc_url, "internvl", timeout_us=400_000, **question).deltas[-1])
    assert (late.finish_reason, late.report.completion_tokens) == ("deadline", 0)


def _image(picture):
    from PIL import Image

    return Image.fromarray(picture[0].transpose(1, 2, 0))


def _words(words):
    return {"type": "text", "text": words}


def test_series_go_on_when_a_process_that_was_stuck_is_ended_and_loaded_again(server, picture):
    options, stub = server.options, server.stubs()["vision_encoder"]
    before = Scrape(server)
    server.options = replace(options, watchdog_s=2.0)
    try:
        os.kill(stub.pid, signal.SIGSTOP)
        assert wait_until(lambda: server.stubs().get("vision_encoder", stub) != stub, within_s=60)
    finally:
        server.options = options

    def answered():
        return (
            ask(server.grpc_url, "internvl", text_input="hi", tiles=picture, max_tokens=ints(1)).error is None
        )

    assert wait_until(answered, within_s=60)
    assert wait_until(
        lambda: Scrape(server)(FEATURE_MISSES) >= before(FEATURE_MISSES) + len(picture),
        within_s=PUBLISHED_WITHIN_S,
    )


def test_the_dashboard_is_one_that_grafana_takes():
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert board["schemaVersion"] >= 36
    assert {"title", "uid", "panels", "templating", "time", "refresh"} <= set(board)
    variables = {each["name"] for each in board["templating"]["list"]}
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in panels:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["title"]
        assert panel["targets"]
        for target in panel["targets"]:
            assert SERIES.search(target["expr"]), target
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= variables | {"__rate_interval"}
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in board["panels"]
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells)), "panels overlap"
