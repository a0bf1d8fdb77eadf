"""What every graph shares: the form it is built in, weights that stream from a checkpoint, and saving.

A `Weight` knows its full name (its attribute path, which is the checkpoint's name for it) and how its bytes are made.
Building a graph touches no weight; `save_graph` streams each one to the data file in blocks, so that memory stays flat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import GraphBuilder, nn

from vitrail.manifest import Sensitive

OPSET = 24
CONTRIB = "com.microsoft"
BLOCK_BYTES = 64 << 20
ALIGNMENT = 4096

Array: TypeAlias = npt.NDArray[Any]
Progress: TypeAlias = Callable[[str, int], None]


class WeightSource(Protocol):
    """Where weights come from; a Checkpoint is one. Names are the normalized vocabulary."""

    def shape(self, name: str) -> tuple[int, ...]: ...

    def load(self, name: str) -> Array: ...

    def load_rows(self, name: str, start: int, stop: int) -> Array: ...


Fill: TypeAlias = Callable[[str, WeightSource], Iterable[Array]]
Bits: TypeAlias = Literal[4, 8]


class Codes(NamedTuple):
    """Rows of a weight matrix: codes uint8 [n, k / block, block] about a middle of 8 (int4) or 128 (int8), and float32
    scales [n, k / block].
    """

    codes: Array
    scales: Array


class Quantizer(Protocol):
    """How a matrix of weights [n, k] becomes integers."""

    def rows(self, source: WeightSource, name: str, *, bits: Bits, block: int) -> Iterator[tuple[int, Codes]]:
        """(first row, codes) over all rows of weight `name`, in order; the same each time it is asked."""
        ...


class CacheScales(Protocol):
    """The steps of an int8 KV cache."""

    def cache_scales(self, name: str) -> Array:
        """Of `text.layers.N.attn.key` or `.value`: float32 [kv_heads * head_dim], a step for each channel."""
        ...


@dataclass(frozen=True, slots=True)
class Form:
    """The form a graph is written in.

    dialect: `ort` uses ONNX Runtime's fused operators, `standard` only opset 24 (which TensorRT parses).
    dtype of activations and float weights. bits: None for float weights, else 8 or 4, made by `quantizer` (None: rounded).
    int8: matrix products in int8, activations by a scale of each `tensor` or each `row` as they come; None: only weights
    are integers. What is `sensitive` gets 8 bits, and keeps its activations. cache: float where None. reads: the graph takes
    prompts only, chunks of one row.
    """

    dialect: Literal["ort", "standard"]
    dtype: ir.DataType
    bits: Bits | None = None
    sensitive: frozenset[Sensitive] = frozenset()
    quantizer: Quantizer | None = None
    cache: CacheScales | None = None
    int8: Literal["tensor", "row"] | None = None
    reads: bool = False

    @property
    def half(self) -> bool:
        return bool(self.dtype != ir.DataType.FLOAT)

    @property
    def port_dtype(self) -> ir.DataType:
        """Of float inputs and outputs but caches and logits, which is vitrail.dtypes.port_dtype."""
        return ir.DataType.FLOAT if self.dtype == ir.DataType.BFLOAT16 else self.dtype

    @property
    def cache_dtype(self) -> ir.DataType:
        return self.dtype if self.cache is None else ir.DataType.INT8

    def in_layer(self, layer: int, layers: int) -> Form:
        """The form of one of the language model's layers."""
        first, last = layer == 0, layer == layers - 1
        raised = (first and "first" in self.sensitive) or (last and "last" in self.sensitive)
        return self._spared() if raised else self

    def of(self, part: str) -> Form:
        """The form of a matrix by the last part of its module's name, such as `down`."""
        return self._spared() if part in self.sensitive else self

    def _spared(self) -> Form:
        return replace(self, bits=8, int8=None) if self.bits else self


class Weight(nn.Parameter):  # type: ignore[misc]
    """An initializer whose bytes `fill(name, source)` yields in C order, block by block, when the graph is saved."""

    def __init__(self, shape: Sequence[int], dtype: ir.DataType, fill: Fill) -> None:
        super().__init__(shape, dtype)
        self.fill = fill


def whole(dtype: ir.DataType) -> Fill:
    """Fill with the tensor of the weight's own name, cast."""

    def fill(name: str, source: WeightSource) -> Iterator[Array]:
        yield source.load(name).astype(dtype.numpy())

    return fill


def vector(size: int, dtype: ir.DataType) -> Weight:
    return Weight([size], dtype, whole(dtype))


def constant(array: Array) -> Weight:
    """A weight that the configuration gives, not the checkpoint."""
    return Weight(array.shape, ir.DataType.from_numpy(array.dtype), lambda _name, _source: [array])


def row_blocks(source: WeightSource, name: str, *, multiple: int = 1) -> Iterator[tuple[int, Array]]:
    """A matrix [rows, columns] in float32 blocks of whole rows: (first row, block)."""
    rows, columns = source.shape(name)
    step = max(multiple, BLOCK_BYTES // (4 * columns) // multiple * multiple)
    for start in range(0, rows, step):
        yield start, source.load_rows(name, start, min(start + step, rows))


def new_graph(name: str) -> tuple[GraphBuilder, Any]:
    """An empty graph and its op builder."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET, CONTRIB: 1}, name=name)
    builder = GraphBuilder(graph)
    return builder, builder.op


def save_graph(builder: GraphBuilder, source: WeightSource, path: Path, progress: Progress) -> None:
    """Write `path` and `path`.data. progress(name, bytes written) after each weight."""
    data = path.with_name(path.name + ".data")
    with data.open("wb") as file:
        for value in builder.graph.initializers.values():
            if isinstance(value, Weight):
                value.const_value = _stream(value, source, file, data.name)
                progress(value.name, value.const_value.nbytes)
    ir.save(ir.Model(builder.graph, ir_version=11, producer_name="vitrail"), path)


def _stream(weight: Weight, source: WeightSource, file: Any, location: str) -> ir.ExternalTensor:
    offset = -(-file.tell() // ALIGNMENT) * ALIGNMENT
    file.seek(offset)
    for block in weight.fill(weight.name, source):
        np.ascontiguousarray(block).tofile(file)
    length = file.tell() - offset
    tensor = ir.ExternalTensor(location, offset, length, weight.dtype, shape=weight.shape, name=weight.name)
    if tensor.nbytes != length:
        raise AssertionError(f"{weight.name}: wrote {length} bytes for {weight.dtype} {weight.shape}")
    return tensor
