"""Vision encoder and projector in static int8: products in pairs by what pictures cause, those that lose too much in float.

The float32 graphs are tried on pictures, rewritten, and tried again beside themselves: on ONNX Runtime's CPU provider,
with nothing but the graphs. OpenVINO and ONNX Runtime both fuse the pairs. Engines in fp8 and int8 are fitted the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from vitrail.core import Uint8
from vitrail.providers import Cpu
from vitrail.session.contract import STAGES
from vitrail.session.inference import open_session
from vitrail_export.equalize import equalize
from vitrail_export.graph import Array
from vitrail_export.pairs import CPU_CODES, Codes, Range, observe, quantize, read_ranges
from vitrail_export.pictures import spread

TARGET = 0.9995
"""Cosine to float32 of the outputs for each picture that was tried, below which products return to float."""
MOST_TRIED = 4


@dataclass(frozen=True, slots=True)
class Fitting:
    """A stage on its way: its float32 graph, what its products are given, and what it makes of the same inputs.

    goal: the cosine to float32 that every input that is tried has to reach.
    """

    source: Path
    target: Path
    ranges: dict[str, Range]
    inputs: list[Array]
    exact: list[Array]
    codes: Codes = CPU_CODES
    goal: float = TARGET

    @classmethod
    def begin(
        cls,
        source: Path,
        target: Path,
        inputs: list[Array],
        *,
        codes: Codes = CPU_CODES,
        goal: float = TARGET,
    ) -> Fitting:
        """inputs: of one tile each."""
        model = ir.load(source)
        names = observe(model)
        ir.save(model, watching := source.with_name(f"{source.stem}.observed.onnx"))
        runs = run(watching, inputs)
        ranges = read_ranges(names, [found[1:] for found in runs])
        return cls(source, target, ranges, inputs, [found[0] for found in runs], codes, goal)

    def blocks(self) -> list[str]:
        """Modules with something to quantize, such as `vision.layers.0.mlp`."""
        return list(dict.fromkeys(map(block_of, self.ranges)))

    def write(self, spared: Sequence[str]) -> None:
        """In its codes but for the products of the blocks `spared`."""
        model = ir.load(self.source)
        ranges = equalize(model, self.ranges) if self.target.name.startswith("vision") else self.ranges
        kept = [name for name in ranges if block_of(name) in spared]
        quantize(model, ranges, self.codes, spared=kept)
        ir.save(model, self.target, external_data=f"{self.target.name}.data")

    def cosine(self, spared: Sequence[str], *, tries: int) -> float:
        """The lowest of so many inputs, spread over all."""
        self.write(spared)
        chosen = spread(len(self.inputs), tries)
        # ONNX Runtime fuses the pairs of fp8, too, into operators that it has in int8 only.
        fused = self.codes.dtype == ir.DataType.INT8
        found = run(self.target, [self.inputs[at] for at in chosen], optimize=fused)
        return min(_cosine(each[0], self.exact[at]) for each, at in zip(found, chosen, strict=True))


def write_static(floats: Path, tiles: Uint8, out: Path) -> tuple[str, ...]:
    """The graphs of `floats` in static int8 to `out`, fitted to tiles uint8 [n, 3, S, S]: the blocks that stay in float."""
    inputs: list[Array] = list(tiles[:, None])
    spared: list[str] = []
    for stage in STAGES:
        fitting = Fitting.begin(floats / f"{stage}.onnx", out / f"{stage}.onnx", inputs)
        spared += spare(fitting)
        inputs = fitting.exact
    return tuple(spared)


def spare(fitting: Fitting) -> list[str]:
    """The fewest blocks, those whose rounding costs most alone, with which every picture reaches the goal; their graph is
    the one that is written last.
    """
    if fitting.cosine([], tries=MOST_TRIED) >= fitting.goal:
        return []
    reached = {block: fitting.cosine([block], tries=1) for block in fitting.blocks()}
    spared: list[str] = []
    for block in sorted(reached, key=lambda each: -reached[each]):
        spared.append(block)
        if fitting.cosine(spared, tries=MOST_TRIED) >= fitting.goal:
            break
    return spared


def block_of(spot: str) -> str:
    return spot.rpartition(".")[0]


def run(graph: Path, inputs: list[Array], *, optimize: bool = True) -> list[list[Array]]:
    session: Any = open_session(graph, Cpu(), optimize=optimize)
    name = session.get_inputs()[0].name
    return [session.run(None, {name: each}) for each in inputs]


def _cosine(found: Array, exact: Array) -> float:
    a, b = (each.astype(np.float64).reshape(-1) for each in (found, exact))
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-300))
