"""fp8 and int8 matrix products in standard QuantizeLinear / DequantizeLinear pairs, which TensorRT, OpenVINO and ONNX Runtime fuse.

Weights: int8 with a scale for each output channel, fp8 (E4M3) with one for the matrix. Activations: one scale for each
matrix product, from the range of values that the calibration pictures cause.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from vitrail.manifest import EnginePrecision
from vitrail_export.graph import OPSET, Array

FLOAT = ir.DataType.FLOAT
NARROW_SCALE = 2.0**-14
"""The smallest normal number of float16, in which engines hold scales."""
ENDS = ("lowest", "highest")
ONE_SIDED = 0.5
"""The most that the shorter end of a range may be of the longer, for the range to count as of one sign."""


@dataclass(frozen=True, slots=True)
class Codes:
    """A quantized type and the largest value it is used for; least: the smallest scale, of type `scales` for weights.

    shifted: activations that are mostly of one sign, as GELU gives them, are uint8 with a zero point.
    """

    dtype: ir.DataType
    limit: float
    per_channel: bool
    scales: Any = np.float16
    least: float = NARROW_SCALE
    shifted: bool = False


ENGINE_CODES: dict[EnginePrecision, Codes] = {
    "int8": Codes(ir.DataType.INT8, 127.0, per_channel=True),
    "fp8": Codes(ir.DataType.FLOAT8E4M3FN, 448.0, per_channel=False),
}
CPU_CODES = Codes(ir.DataType.INT8, 127.0, per_channel=True, scales=np.float32, least=1e-20, shifted=True)


class Spot(NamedTuple):
    """An input that is quantized: the name of its product, or of a query or key of attention."""

    name: str
    node: ir.Node
    place: int = 0

    @property
    def value(self) -> ir.Value:
        found = self.node.inputs[self.place]
        assert found is not None
        return found


class Range(NamedTuple):
    """What a spot's value reaches, float32 [channels] each."""

    lowest: Array
    highest: Array

    @property
    def magnitude(self) -> Array:
        """[channels]"""
        reached: Array = np.maximum(-self.lowest, self.highest)
        return reached

    def over(self, factors: Array) -> Range:
        """Of inputs divided by positive `factors` [channels]."""
        return Range(self.lowest / factors, self.highest / factors)


def products(graph: ir.Graph) -> Iterator[ir.Node]:
    """Every product of activations with a float weight matrix."""
    for node in graph:
        if node.op_type == "MatMul" and node.inputs[1].is_initializer() and node.inputs[1].dtype == FLOAT:
            yield node


def name_of(product: ir.Node) -> str:
    """Its module's name, such as `vision.layers.0.mlp.fc1`."""
    return str(product.inputs[1].name).removesuffix(".weight")


def spots(graph: ir.Graph) -> Iterator[Spot]:
    """The inputs of products, and of ONNX Runtime's attention queries and keys."""
    for node in graph:
        if node.op_type == "MultiHeadAttention":
            module = str(node.name).rpartition("/")[0].replace("/", ".")
            yield Spot(f"{module}.query", node)
            yield Spot(f"{module}.key", node, 1)
    for product in products(graph):
        yield Spot(name_of(product), product)


def observe(model: ir.Model) -> list[str]:
    """In place, a widened graph: its further outputs become the ends of the Range of each spot's value [n, m, channels],
    in the order of the names returned.
    """
    graph, found = model.graph, list(spots(model.graph))
    for spot in found:
        for kind, end in zip(("ReduceMin", "ReduceMax"), ENDS, strict=True):
            axes = _constant(graph, f"{spot.name}.{end}.axes", np.array([0, 1], np.int64))
            node = ir.node(kind, [spot.value, axes], {"keepdims": 0}, name=f"{spot.name}/{end}")
            graph.append(node)
            reached = node.outputs[0]
            reached.name, reached.dtype = f"{spot.name}.{end}", FLOAT
            reached.shape = ir.Shape([None])
            graph.outputs.append(reached)
    return [spot.name for spot in found]


def read_ranges(names: list[str], runs: list[list[Array]]) -> dict[str, Range]:
    """runs: what `observe` added to the outputs of each run."""
    ends = [np.stack(each) for each in zip(*runs, strict=True)]
    return {name: Range(ends[2 * i].min(0), ends[2 * i + 1].max(0)) for i, name in enumerate(names)}


def quantize(
    model: ir.Model, ranges: Mapping[str, Range], codes: Codes, *, spared: Collection[str] = ()
) -> None:
    """In place, a widened graph. ranges: by the spots' names; spared: the names of those that stay in float."""
    for spot in list(spots(model.graph)):
        if spot.name in spared:
            continue
        scale, zero = step(ranges[spot.name], codes)
        spot.node.replace_input_with(spot.place, _activation(model.graph, spot, scale, zero))
        if spot.node.op_type == "MatMul":
            spot.node.replace_input_with(1, _weight(model.graph, spot.node, codes))


def step(reached: Range, codes: Codes) -> tuple[Array, Array]:
    """The scale and the zero point of activations."""
    low, high = min(float(reached.lowest.min()), 0.0), max(float(reached.highest.max()), 0.0)
    if not codes.shifted or min(-low, high) > ONE_SIDED * max(-low, high):
        scale = max(-low, high) / codes.limit
        return np.array(max(scale, codes.least), np.float32), np.zeros((), codes.dtype.numpy())
    scale = max((high - low) / 255, codes.least)
    return np.array(scale, np.float32), np.array(np.clip(np.rint(-low / scale), 0, 255), np.uint8)


def _activation(graph: ir.Graph, spot: Spot, scale: Array, zero: Array) -> ir.Value:
    node, name = spot.node, spot.name.rpartition(".")[2]
    held = _constant(graph, f"{spot.name}.input_scale", scale)
    middle = _constant(graph, f"{spot.name}.input_zero", zero)
    inputs, dtype = [spot.value, held, middle], ir.DataType.from_numpy(zero.dtype)
    quantized = _node(graph, node, "QuantizeLinear", inputs, dtype=dtype, name=f"{name}.quantize")
    inputs = [quantized, held, middle]
    return _node(graph, node, "DequantizeLinear", inputs, dtype=FLOAT, name=f"{name}.dequantize")


def _weight(graph: ir.Graph, node: ir.Node, codes: Codes) -> ir.Value:
    """Scales are known now, codes are made when the graph is saved, one matrix at a time."""
    value = node.inputs[1]
    held: Any = value.const_value
    magnitude = np.abs(held.numpy()).max(axis=0 if codes.per_channel else None)
    scale = np.maximum(magnitude / np.float32(codes.limit), np.float32(codes.least)).astype(codes.scales)

    def make() -> ir.Tensor:
        return ir.Tensor(_codes(held.numpy(), scale, codes), dtype=codes.dtype, name=value.name)

    value.const_value = ir.LazyTensor(make, dtype=codes.dtype, shape=held.shape, name=value.name)
    value.dtype = codes.dtype
    scales = _constant(graph, f"{value.name}.scale", scale.astype(np.float32))
    return _node(graph, node, "DequantizeLinear", [value, scales], dtype=FLOAT, name="weight", axis=1)


def _codes(weight: Array, scale: Array, codes: Codes) -> Array:
    scaled = np.clip(weight / scale.astype(np.float32), -codes.limit, codes.limit)
    if codes.dtype == ir.DataType.INT8:
        scaled = np.rint(scaled)
    made: Array = scaled.astype(codes.dtype.numpy())
    return made


def _node(
    graph: ir.Graph,
    before: ir.Node,
    kind: str,
    inputs: list[ir.Value],
    *,
    dtype: ir.DataType,
    name: str,
    axis: int | None = None,
) -> ir.Value:
    attributes = {} if axis is None or inputs[1].shape.rank() == 0 else {"axis": axis}
    made = ir.Value(name=f"{before.name}.{name}", type=ir.TensorType(dtype), shape=inputs[0].shape)
    node = ir.node(kind, inputs, attributes, outputs=[made], version=OPSET, name=f"{before.name}/{name}")
    graph.insert_before(before, node)
    return made


def _constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    tensor = ir.Tensor(array, dtype=ir.DataType.from_numpy(array.dtype), name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.register_initializer(value)
    return value
