"""fp8 and int8 matrix products in standard QuantizeLinear / DequantizeLinear pairs, which TensorRT fuses.

Weights: int8 with a scale for each output channel, fp8 (E4M3) with one for the matrix. Activations: one scale for each
matrix product, from the largest value that the calibration pictures cause.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from vitrail.manifest import EnginePrecision
from vitrail_export.engine.lowering import FLOAT
from vitrail_export.graph import OPSET, Array

LEAST_SCALE = 2.0**-14
"""The smallest normal number of float16, in which scales are held."""


@dataclass(frozen=True, slots=True)
class Codes:
    """A quantized type and the largest value it is used for."""

    dtype: ir.DataType
    limit: float
    per_channel: bool


CODES: dict[EnginePrecision, Codes] = {
    "int8": Codes(ir.DataType.INT8, 127.0, per_channel=True),
    "fp8": Codes(ir.DataType.FLOAT8E4M3FN, 448.0, per_channel=False),
}


def products(graph: ir.Graph) -> Iterator[ir.Node]:
    """Every product of activations with a float weight matrix."""
    for node in graph:
        if node.op_type == "MatMul" and node.inputs[1].is_initializer() and node.inputs[1].dtype == FLOAT:
            yield node


def observe(model: ir.Model) -> None:
    """In place, a widened graph: its outputs become the largest magnitude that each product is given, by its name."""
    graph = model.graph
    graph.outputs.clear()
    for node in list(products(graph)):
        magnitude = ir.node("Abs", [node.inputs[0]], name=f"{node.name}/observed")
        largest = ir.node("ReduceMax", magnitude.outputs, {"keepdims": 0}, name=f"{node.name}/largest")
        for added in (magnitude, largest):
            graph.append(added)
        largest.outputs[0].name, largest.outputs[0].dtype = str(node.name), FLOAT
        largest.outputs[0].shape = ir.Shape([])
        graph.outputs.append(largest.outputs[0])


def quantize(model: ir.Model, largest: dict[str, float], precision: EnginePrecision) -> None:
    """In place, a widened graph. largest: what `observe` measured, by the product's name."""
    codes = CODES[precision]
    for node in list(products(model.graph)):
        scale = np.array(max(largest[str(node.name)] / codes.limit, LEAST_SCALE), np.float32)
        node.replace_input_with(0, _activation(model.graph, node, scale, codes))
        node.replace_input_with(1, _weight(model.graph, node, codes))


def _activation(graph: ir.Graph, node: ir.Node, scale: Array, codes: Codes) -> ir.Value:
    held = _constant(graph, f"{node.name}.input_scale", scale)
    zero = _constant(graph, f"{node.name}.input_zero", np.zeros((), codes.dtype.numpy()))
    x = node.inputs[0]
    quantized = _node(graph, node, "QuantizeLinear", [x, held, zero], dtype=codes.dtype, name="quantize")
    return _node(graph, node, "DequantizeLinear", [quantized, held, zero], dtype=FLOAT, name="dequantize")


def _weight(graph: ir.Graph, node: ir.Node, codes: Codes) -> ir.Value:
    """Scales are known now, codes are made when the graph is saved, one matrix at a time."""
    value = node.inputs[1]
    held: Any = value.const_value
    magnitude = np.abs(held.numpy()).max(axis=0 if codes.per_channel else None)
    scale = np.maximum(magnitude / np.float32(codes.limit), np.float32(LEAST_SCALE)).astype(np.float16)

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
