"""The files of one stage on the way to its engine: the exact graph, the lowered one, and that one as it is tried."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from vitrail.manifest import EnginePrecision, Stage
from vitrail_export.emulation import emulate
from vitrail_export.engine.cases import Case
from vitrail_export.engine.emulation import emulate_bfloat16
from vitrail_export.engine.greedy import add_greedy
from vitrail_export.engine.lowering import BFLOAT16, FLOAT, FLOAT16, lower, set_capacity
from vitrail_export.engine.options import QUANTIZED
from vitrail_export.engine.sources import Source
from vitrail_export.pairs import ENGINE_CODES
from vitrail_export.static import Fitting, spare

POSITIONS = "vision.position_embedding"
GOAL = 0.995
"""Cosine to float32 of fp8 and int8 for each picture that is tried, below which blocks return to half precision: midway
between equal and what is refused.
"""


@dataclass(frozen=True, slots=True)
class Graphs:
    """exact: in float32. tried: what the engine computes, for ONNX Runtime's CPU provider. engine: for the builder."""

    exact: Path
    tried: Path
    engine: Path


@dataclass(frozen=True, slots=True)
class Prepared:
    """A stage's float32 graph as it is, and as it is lowered, which in fp8 and int8 is quantized but for blocks `spared`."""

    exact: Path
    fitted: Path
    spared: tuple[str, ...] = ()

    @classmethod
    def of(cls, source: Source, scratch: Path, precision: EnginePrecision, cases: list[Case]) -> Prepared:
        exact = _save(_overridable(source.load()), scratch / f"{source.stage}.float32.onnx")
        if precision not in QUANTIZED:
            return cls(exact, exact)
        tiles = [case.feeds["tiles"] for case in cases if case.real]
        fitted = scratch / f"{source.stage}.fitted.onnx"
        fitting = Fitting.begin(exact, fitted, tiles, codes=ENGINE_CODES[precision], goal=GOAL)
        return cls(exact, fitted, tuple(spare(fitting)))

    def lower(
        self, stage: Stage, precision: EnginePrecision, *, capacity: int, wide_attention: bool = False
    ) -> Graphs:
        """Over what an earlier call has written."""
        model = _fixed(ir.load(self.fitted))
        half, boundary = (BFLOAT16, FLOAT) if precision == "bf16" else (FLOAT16, FLOAT16)
        lower(model, half, boundary=boundary, wide_attention=wide_attention)
        lowered = _save(model, self.exact.with_name(f"{stage}.onnx"))
        return Graphs(self.exact, _tried(lowered, precision), _engine(lowered, capacity))


def position_embedding(source: Source) -> ir.TensorProtocol:
    """[1, 1 + patches, d] of a vision encoder."""
    held = source.load().graph.initializers[POSITIONS].const_value
    assert held is not None
    return held


def _tried(lowered: Path, precision: EnginePrecision) -> Path:
    model = _overridable(ir.load(lowered))
    path = lowered.with_name(f"{lowered.stem}.tried.onnx")
    if precision == "fp16":
        # Attention's own kernel rounds its scores to float16; all others would be taken for float32.
        emulate(model, FLOAT16, native={"Attention"})
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


def _fixed(model: ir.Model) -> ir.Model:
    """Position embeddings are no input again."""
    for value in [each for each in model.graph.inputs if each.is_initializer()]:
        model.graph.inputs.remove(value)
    return model


def _save(model: ir.Model, path: Path) -> Path:
    """With its weights in one file beside it, converted one by one as they are written."""
    ir.save(model, path, external_data=f"{path.name}.data")
    return path


def _save_variant(model: ir.Model, path: Path) -> Path:
    """A changed graph over the weight file of the one that it was loaded from, in the same folder."""
    ir.save(model, path)
    return path
