"""A request's phases as OpenTelemetry spans in OTLP's JSON, below the span of who asked. Pure.

Attributes have the names of OpenTelemetry's semantic conventions for generative AI; what these lack is `vitrail.*`.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from vitrail.core import Report, Timings
    from vitrail.errors import VitrailError

SERVICE = "vitrail"
_INTERNAL, _SERVER = 1, 2
_ERROR = 2
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-[0-9a-f]{2}")

Span: TypeAlias = "dict[str, Any]"
Value: TypeAlias = "str | int | float | tuple[str, ...]"


class Parent(NamedTuple):
    """The span that a request was asked in: hexadecimal ids."""

    trace_id: str
    span_id: str


def parent_from(traceparent: str) -> Parent | None:
    """Of a W3C traceparent; None for anything else."""
    found = _TRACEPARENT.fullmatch(traceparent)
    return Parent(found["trace"], found["span"]) if found else None


@dataclass(frozen=True, slots=True)
class Asked:
    """A traced request. began_ns: unix time of its arrival at the decoder."""

    parent: Parent
    request_id: str
    model_name: str
    began_ns: int


def request_spans(
    asked: Asked, report: Report | None, error: VitrailError | None, reasons: Iterable[str], *, ended_ns: int
) -> list[Span]:
    """The span of a request that ended at `ended_ns`, and below it one for each phase that it had."""
    times = None if report is None else report.timings
    began_ns = asked.began_ns if times is None else ended_ns - _ns(times.total_ms - times.preprocess_ms)
    whole = _span(
        f"chat {asked.model_name}", asked.parent, kind=_SERVER, began_ns=began_ns, ended_ns=ended_ns
    )
    whole["attributes"] = _attributes(
        {**_identity(asked), **({} if report is None else _usage(report, tuple(reasons)))}
    )
    if error is not None:
        whole["attributes"] += _attributes({"error.type": error.code})
        whole["status"] = {"code": _ERROR, "message": str(error)}
    parent = Parent(asked.parent.trace_id, whole["spanId"])
    return [whole, *(() if times is None else _phases(parent, times, began_ns=began_ns))]


def export_request(spans: Iterable[Span], *, version: str) -> dict[str, Any]:
    """The body that a collector takes at /v1/traces."""
    scope = {"scope": {"name": "vitrail.decoder", "version": version}, "spans": list(spans)}
    resource = {"attributes": _attributes({"service.name": SERVICE})}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]}


def _phases(parent: Parent, times: Timings, *, began_ns: int) -> Iterator[Span]:
    """One after the other: that is how a request's timings are measured."""
    for name in ("vision", "queue", "prefill", "decode"):
        duration_ms: float = getattr(times, f"{name}_ms")
        if duration_ms:
            ended_ns = began_ns + _ns(duration_ms)
            yield _span(name, parent, kind=_INTERNAL, began_ns=began_ns, ended_ns=ended_ns)
            began_ns = ended_ns


def _span(name: str, parent: Parent, *, kind: int, began_ns: int, ended_ns: int) -> Span:
    return {
        "traceId": parent.trace_id,
        "spanId": secrets.token_hex(8),
        "parentSpanId": parent.span_id,
        "name": name,
        "kind": kind,
        "startTimeUnixNano": str(began_ns),
        "endTimeUnixNano": str(ended_ns),
    }


def _identity(asked: Asked) -> dict[str, Value]:
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": asked.model_name,
        "triton.request_id": asked.request_id,
    }


def _usage(report: Report, reasons: tuple[str, ...]) -> dict[str, Value]:
    tiles = sum(image.tiles for image in report.images)  # a plain question does not describe its pictures
    return {
        "gen_ai.response.finish_reasons": reasons,
        "gen_ai.usage.input_tokens": report.prompt_tokens,
        "gen_ai.usage.output_tokens": report.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": report.reused_tokens,
        "vitrail.time_to_first_token": (report.timings.ttft_ms - report.timings.preprocess_ms) / 1000,
        "vitrail.client_preprocess_time": report.timings.preprocess_ms / 1000,
        "vitrail.reused_tiles": report.reused_tiles,
        **({"vitrail.tiles": tiles} if tiles else {}),
    }


def _attributes(values: Mapping[str, Value]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: Value) -> dict[str, Any]:
    match value:
        case str():
            return {"stringValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case _:
            return {"arrayValue": {"values": [_value(each) for each in value]}}


def _ns(milliseconds: float) -> int:
    return int(1e6 * milliseconds)
