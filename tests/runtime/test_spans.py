"""A request's phases as spans."""

from vitrail.core import Report, Timings
from vitrail.errors import Busy
from vitrail.spans import Asked, Parent, export_request, parent_from, request_spans

PARENT = Parent("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
ASKED = Asked(PARENT, "me", "tiny", began_ns=5)
TIMES = Timings(
    preprocess_ms=100, vision_ms=200, queue_ms=0, prefill_ms=150, decode_ms=300, ttft_ms=450, total_ms=750
)


def attributes(span):
    return {each["key"]: next(iter(each["value"].values())) for each in span["attributes"]}


def bounds_ms(span, ended_ns):
    return tuple((int(span[f"{end}TimeUnixNano"]) - ended_ns) / 1e6 for end in ("start", "end"))


def test_phases_follow_one_another_below_the_request_and_end_with_it():
    ended_ns = 1_800_000_000_000_000_000
    report = Report(9, 4, timings=TIMES, reused_tokens=3)
    whole, *phases = request_spans(ASKED, report, None, ["stop"], ended_ns=ended_ns)
    assert bounds_ms(whole, ended_ns) == (-650, 0)
    assert [(span["name"], bounds_ms(span, ended_ns)) for span in phases] == [
        ("vision", (-650, -450)),
        ("prefill", (-450, -300)),
        ("decode", (-300, 0)),
    ]
    assert whole["parentSpanId"] == PARENT.span_id
    assert {span["parentSpanId"] for span in phases} == {whole["spanId"]}
    assert {span["traceId"] for span in (whole, *phases)} == {PARENT.trace_id}
    assert len({span["spanId"] for span in (whole, *phases)}) == 4


def test_a_request_tells_its_usage_in_the_conventions_names():
    whole, *_ = request_spans(ASKED, Report(9, 4, timings=TIMES, reused_tokens=3), None, ["stop"], ended_ns=1)
    found = attributes(whole)
    assert found["gen_ai.request.model"] == "tiny"
    assert found["gen_ai.usage.input_tokens"] == "9"
    assert found["gen_ai.usage.output_tokens"] == "4"
    assert found["gen_ai.usage.cache_read.input_tokens"] == "3"
    assert found["gen_ai.response.finish_reasons"] == {"values": [{"stringValue": "stop"}]}
    assert found["vitrail.time_to_first_token"] == 0.35


def test_a_failed_request_is_one_span_with_its_error():
    (whole,) = request_spans(ASKED, None, Busy("full"), [], ended_ns=9)
    assert (whole["startTimeUnixNano"], whole["endTimeUnixNano"]) == ("5", "9")
    assert whole["status"] == {"code": 2, "message": "full"}
    assert attributes(whole)["error.type"] == "busy"


def test_a_parent_is_read_from_a_traceparent_alone():
    assert parent_from(f"00-{PARENT.trace_id}-{PARENT.span_id}-01") == PARENT
    assert parent_from("") is None
    assert parent_from(f"00-{PARENT.trace_id}-{PARENT.span_id}") is None


def test_a_collector_is_told_the_service():
    body = export_request([{"name": "x"}], version="1")
    (resource,) = body["resourceSpans"]
    assert attributes(resource["resource"]) == {"service.name": "vitrail"}
    assert resource["scopeSpans"][0]["spans"] == [{"name": "x"}]
