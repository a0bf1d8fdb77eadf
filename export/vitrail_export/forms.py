"""The forms of an export that `vitrail plan` looks at: what a target is served with, narrowed to what a user asks for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail_export.options import ExportOptions

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vitrail.manifest import CachePrecision, Precision, Prefill, VisionPrecision
    from vitrail.plan.model import Target

_PICTURES = Path("pictures")
"""What an int8 KV cache or static int8 would be fitted to; never opened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a user asks for, by the options of `vitrail export`; None where anything will do. openvino: what vision runs on."""

    precision: Precision | None = None
    prefill: Prefill | None = None
    vision_precision: VisionPrecision | None = None
    cache: CachePrecision | None = None
    openvino: bool = False


def forms(target: Target, wanted: Wanted) -> list[ExportOptions]:
    """The most precise first. Raises OptionError for what cannot be exported, or not for this target."""
    usual = _on_cpu(openvino=wanted.openvino) if target == "cpu" else _on_gpu(target)
    chosen = _narrowed(usual, precision=wanted.precision, prefill=wanted.prefill)
    changed = _given(vision_precision=wanted.vision_precision, cache=wanted.cache)
    if wanted.cache == "int8" or wanted.vision_precision == "int8-static":
        changed["calibration"] = _PICTURES
    return list(dict.fromkeys(replace(form, **changed) for form in chosen))


def _on_cpu(*, openvino: bool) -> list[ExportOptions]:
    vision: VisionPrecision = "float16" if openvino else "float32"
    forms = [
        ExportOptions(precision="int8", vision_precision=vision),
        ExportOptions(precision="w8a8", vision_precision=vision),
        ExportOptions(precision="int4", vision_precision=vision),
        ExportOptions(precision="int4", prefill="w8a8", vision_precision=vision),
    ]
    return forms if openvino else [*forms, ExportOptions(precision="int4", vision_precision="int8")]


def _on_gpu(target: Target) -> list[ExportOptions]:
    dialect: Any = "ort" if target == "cuda" else "standard"
    precisions: tuple[Precision, ...] = ("float16", "int8", "int4")
    return [
        ExportOptions(precision=precision, vision_precision="float16", activations="float16", dialect=dialect)
        for precision in precisions
    ]


def _narrowed(usual: Iterable[ExportOptions], **wanted: Any) -> list[ExportOptions]:
    """Those that are as wanted; where there is none, the first made so."""
    given, usual = _given(**wanted), list(usual)
    fitting = [form for form in usual if all(getattr(form, name) == value for name, value in given.items())]
    return fitting or [replace(usual[0], **given)]


def _given(**wanted: Any) -> dict[str, Any]:
    return {name: value for name, value in wanted.items() if value is not None}
