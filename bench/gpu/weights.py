"""Random weights made where they are needed: no checkpoint is written and read back.

The same numbers for the same name: the exported graphs and the model that they are measured beside are the same model.
Every layer has the numbers of the first, so that a layer is quantized once and copied.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnxscript import GraphBuilder

from vitrail_export.config import ModelConfig
from vitrail_export.graph import ALIGNMENT, Weight
from vitrail_export.names import weight_shapes
from vitrail_export.synthesize import Bits, Numbers, spread_of
from vitrail_export.weights import Float32, Shape

COPIED_BYTES = 64 << 20


class RandomWeights:
    """A source of weights by our names: bf16 numbers, drawn as `vitrail synthesize` draws them."""

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        self.shapes = weight_shapes(config)
        self._numbers = Numbers(seed)

    def shape(self, name: str) -> Shape:
        return self.shapes[name]

    def load(self, name: str) -> Float32:
        return self.load_rows(name, 0, self.shapes[name][0])

    def load_rows(self, name: str, start: int, stop: int) -> Float32:
        """Rows start .. stop - 1, exact in float32."""
        shape = (stop - start, *self.shapes[name][1:])
        out = np.empty(shape, np.float32)
        flat, at = out.reshape(-1), 0
        for piece in self.bits(name, start, stop):
            target = flat[at : at + piece.size].view(np.uint32)
            np.left_shift(piece, 16, out=target, dtype=np.uint32)
            at += piece.size
        return out

    def bits(self, name: str, start: int, stop: int) -> Iterator[Bits]:
        """The rows as the upper halves of float32, in pieces."""
        shape = self.shapes[name]
        row = int(np.prod(shape[1:]))
        items = (stop - start) * row
        return self._numbers.blocks(of_first_layer(name), spread_of(name, shape), items, first=start * row)


def of_first_layer(name: str) -> str:
    return re.sub(r"layers\.\d+\.", "layers.0.", name)


def write_graph(builder: GraphBuilder, source: RandomWeights, path: Path, *, threads: int) -> None:
    """As `vitrail_export.graph.save_graph`, with every core: each weight's place is known before it is made."""
    weights = [value for value in builder.graph.initializers.values() if isinstance(value, Weight)]
    data = path.with_name(path.name + ".data")
    offsets, size = _lay_out([weight_bytes(weight) for weight in weights])
    with data.open("w+b") as file, ThreadPoolExecutor(threads) as pool:
        file.truncate(size)
        descriptor, originals = file.fileno(), _originals(weights, offsets)
        largest_first = sorted(set(originals), key=lambda each: -weight_bytes(each[0]))
        for _ in pool.map(lambda each: _write(descriptor, each[0], each[1], source), largest_first):
            pass
        copies = [
            (one, start, to) for (one, start), to in zip(originals, offsets, strict=True) if start != to
        ]
        for _ in pool.map(lambda each: _copy(descriptor, *each), copies):
            pass
    for weight, offset in zip(weights, offsets, strict=True):
        weight.const_value = ir.ExternalTensor(
            data.name, offset, weight_bytes(weight), weight.dtype, shape=weight.shape, name=weight.name
        )
    ir.save(ir.Model(builder.graph, ir_version=11, producer_name="vitrail"), path)


def _originals(weights: Sequence[Weight], offsets: Sequence[int]) -> list[tuple[Weight, int]]:
    """For each weight the first that has its bytes, and where that is: the same one of the first layer."""
    first: dict[object, tuple[Weight, int]] = {}
    return [
        first.setdefault((of_first_layer(weight.name), weight.dtype, tuple(weight.shape)), (weight, offset))
        for weight, offset in zip(weights, offsets, strict=True)
    ]


def weight_bytes(weight: Weight) -> int:
    return int(-(-weight.dtype.bitwidth * np.prod(weight.shape.numpy()) // 8))


def _lay_out(sizes: Sequence[int]) -> tuple[list[int], int]:
    """An aligned offset for each size, and where the last ends."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(-(-end // ALIGNMENT) * ALIGNMENT)
        end = offsets[-1] + size
    return offsets, end


def _write(descriptor: int, weight: Weight, offset: int, source: RandomWeights) -> None:
    end = offset + weight_bytes(weight)
    for block in weight.fill(weight.name, source):
        view = np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
        while view:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written
    if offset != end:
        raise AssertionError(f"{weight.name} ends {end - offset} bytes early")


def _copy(descriptor: int, weight: Weight, offset: int, to: int) -> None:
    end = offset + weight_bytes(weight)
    for start in range(offset, end, COPIED_BYTES):
        block = os.pread(descriptor, min(COPIED_BYTES, end - start), start)
        if os.pwrite(descriptor, block, to + start - offset) != min(COPIED_BYTES, end - start):
            raise OSError(f"{weight.name} could not be copied whole")
