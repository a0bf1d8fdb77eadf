"""The files of one stage on the way to its engine: the exact graph, the lowered one, and that one as it is tried."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from vitrail.manifest import EnginePrecision
from vitrail_export.engine.cases import Case
from vitrail_export.engine.emulation import emulate_bfloat16
from vitrail_export.engine.gate import run_all
from vitrail_export.engine.greedy import add_greedy
from vitrail_export.engine.lowering import BFLOAT16, FLOAT, FLOAT16, lower, set_capacity
from vitrail_export.engine.options import QUANTIZED
from vitrail_export.engine.sources import Source
from vitrail_export.pairs import ENGINE_CODES, Range, observe, quantize, read_ranges

POSITIONS = "vision.position_embedding"


@dataclass(frozen=True, slots=True)
class Graphs:
    """exact: in float32. tried: what the engine computes, for ONNX Runtime's CPU provider. engine: for the builder."""

    exact: Path
    tried: Path
    engine: Path


def write_graphs(
    source: Source, scratch: Path, precision: EnginePrecision, *, cases: list[Case], capacity: int
) -> Graphs:
    exact = _save(_overridable(source.load()), scratch / f"{source.stage}.float32.onnx")
    model = source.load()
    if precision in QUANTIZED:
        quantize(model, calibrate(exact, cases), ENGINE_CODES[precision])
    half, boundary = (BFLOAT16, FLOAT) if precision == "bf16" else (FLOAT16, FLOAT16)
    lower(model, half, boundary=boundary)
    lowered = _save(model, scratch / f"{source.stage}.onnx")
    return Graphs(exact, _tried(lowered, precision), _engine(lowered, capacity))


def calibrate(exact: Path, cases: list[Case]) -> dict[str, Range]:
    """What each matrix product is given by the real pictures among the cases."""
    model = ir.load(exact)
    count = len(model.graph.outputs)
    names = observe(model)
    graph = _save_variant(model, exact.with_name(f"{exact.stem}.observed.onnx"))
    measured = run_all(graph, [case for case in cases if case.real])
    return read_ranges(names, [each[count:] for each in measured])


def position_embedding(source: Source) -> ir.TensorProtocol:
    """[1, 1 + patches, d] of a vision encoder."""
    held = source.load().graph.initializers[POSITIONS].const_value
    assert held is not None
    return held


def _tried(lowered: Path, precision: EnginePrecision) -> Path:
    model = _overridable(ir.load(lowered))
    path = lowered.with_name(f"{lowered.stem}.tried.onnx")
    if precision != "bf16":
        return _save_variant(model, path)
    emulate_bfloat16(model)
    return _save(model, path)


def _engine(lowered: Path, capacity: int) -> Path:
    model = ir.load(lowered)
    set_capacity(model, capacity)
    if lowered.stem == "decoder":
        add_greedy(model)
    return _save_variant(model, lowered.with_name(f"{lowered.stem}.engine.onnx"))


def _overridable(model: ir.Model) -> ir.Model:
    """Position embeddings become an input with a default: through them a run can be given extreme activations."""
    positions = model.graph.initializers.get(POSITIONS)
    if positions is not None:
        model.graph.inputs.append(positions)
    return model


def _save(model: ir.Model, path: Path) -> Path:
    """With its weights in one file beside it, converted one by one as they are written."""
    ir.save(model, path, external_data=f"{path.name}.data")
    return path


def _save_variant(model: ir.Model, path: Path) -> Path:
    """A changed graph over the weight file of the one that it was loaded from, in the same folder."""
    ir.save(model, path)
    return path
