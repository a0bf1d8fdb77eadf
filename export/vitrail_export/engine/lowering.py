"""An exported float graph in another arithmetic: first `widen` to float32 in standard operators, then `lower`.

In the lowered graph everything is of one half-precision type but what overflows in it: the normalizations (of pixels,
LayerNorm, RMSNorm) stay in float32 between casts. Softmax is part of Attention: TensorRT's parser refuses ONNX's
softmax_precision, so scores that leave the type are found when the graph is tried, on a kernel that rounds them to it. A
vision encoder's Attention is then computed in float32, too, scores and all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes  # noqa: F401  teaches numpy the name bfloat16
import numpy as np
import onnx_ir as ir

from vitrail.errors import ArtifactError
from vitrail_export.graph import CONTRIB, OPSET

FLOAT, FLOAT16, BFLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
FLOATS = frozenset({FLOAT, FLOAT16, BFLOAT16})
WIDE = frozenset({"LayerNormalization", "RMSNormalization", "Sub", "Div"})
"""What is computed in float32 in every graph; Sub and Div normalize pixels."""
ATTENTION = "Attention"


def widen(model: ir.Model) -> None:
    """In place: float32 throughout, in operators of ONNX alone. Raises ArtifactError for what has no such form."""
    replaced = [_standardize(model.graph, node) for node in list(model.graph)]
    if any(replaced):
        # Nothing knew the types of what follows an operator of ONNX Runtime's own.
        ir.passes.common.ShapeInferencePass()(model)
    for value in model.graph.initializers.values():
        if value.dtype in (FLOAT16, BFLOAT16):
            cast_weight(value, FLOAT)
    for value in values(model.graph):
        if value.dtype in (FLOAT16, BFLOAT16):
            value.dtype = FLOAT
    for node in list(model.graph):
        if node.op_type == "Cast" and node.inputs[0].dtype in FLOATS and node.outputs[0].dtype in FLOATS:
            _bypass(model.graph, node)


def lower(
    model: ir.Model, dtype: ir.DataType, *, boundary: ir.DataType, wide_attention: bool = False
) -> None:
    """In place, a widened graph: `dtype` inside and for KV caches, `boundary` for other float inputs and outputs.

    Logits stay float32, and with `wide_attention` what scores are computed from, and they themselves.
    """
    graph, wide = model.graph, WIDE | {ATTENTION} if wide_attention else WIDE
    for value in graph.initializers.values():
        if value.dtype == FLOAT and not all(node.op_type in wide for node in value.consumers()):
            cast_weight(value, dtype)
    for value in graph.inputs:
        if value.dtype == FLOAT:
            value.dtype = dtype if is_cache(value) else boundary
    # Casts that are left in a widened graph come from integers or lead to them.
    narrow = [node for node in graph if node.op_type not in wide | {"Cast"}]
    for value in (output for node in narrow for output in node.outputs):
        value.dtype = dtype if value.dtype == FLOAT else value.dtype
    _insert_casts(graph, dtype, wide)
    for i, value in enumerate(list(graph.outputs)):
        wanted = FLOAT if value.name == "logits" else boundary
        if value.dtype in FLOATS and not is_cache(value) and value.dtype != wanted:
            _cast_output(graph, i, wanted)


def set_capacity(model: ir.Model, capacity: int) -> None:
    """In place: KV caches of exactly `capacity` tokens a slot."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        if is_cache(value):
            batch, heads, _, size = value.shape
            value.shape = ir.Shape([batch, heads, capacity, size])


def is_cache(value: ir.Value) -> bool:
    return str(value.name).startswith(("past.", "present."))


def values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Inputs and whatever nodes make."""
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def cast_weight(value: ir.Value, dtype: ir.DataType) -> None:
    """Its bytes are converted when the graph is saved, one weight at a time."""
    held: Any = value.const_value

    def convert() -> ir.Tensor:
        with np.errstate(over="ignore"):  # the graph is tried before it is built, and tells of infinities
            return ir.Tensor(held.numpy().astype(dtype.numpy()), dtype=dtype, name=value.name)

    value.const_value = ir.LazyTensor(convert, dtype=dtype, shape=held.shape, name=value.name)
    value.dtype = dtype


def new_cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    made = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape)
    return ir.node("Cast", [value], {"to": int(dtype)}, outputs=[made], name=name)


def _standardize(graph: ir.Graph, node: ir.Node) -> bool:
    """Whether the node had to be replaced."""
    if node.domain in ("", "ai.onnx"):
        return False
    if (node.op_type, node.domain) != ("MultiHeadAttention", CONTRIB):
        raise ArtifactError(f"TensorRT has no operator {node.op_type}, which is ONNX Runtime's own")
    heads = node.attributes["num_heads"].as_int()
    attributes = {"q_num_heads": heads, "kv_num_heads": heads, "scale": node.attributes["scale"].as_float()}
    old = node.outputs[0]
    made = ir.Value(name=old.name)
    attention = ir.node("Attention", node.inputs, attributes, outputs=[made], version=OPSET, name=node.name)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [attention], [old], [made])
    return True


def _bypass(graph: ir.Graph, cast: ir.Node) -> None:
    source, result = cast.inputs[0], cast.outputs[0]
    if result.is_graph_output():
        made = ir.Value(name=result.name, type=result.type, shape=result.shape)
        identity = ir.node("Identity", [source], outputs=[made], name=cast.name)
        ir.convenience.replace_nodes_and_values(graph, cast, [cast], [identity], [result], [made])
        return
    ir.convenience.replace_all_uses_with(result, source)
    graph.remove(cast, safe=True)


def _insert_casts(graph: ir.Graph, dtype: ir.DataType, wide: frozenset[str]) -> None:
    """Give every node the float type that it computes in, one cast of a value for all its consumers."""
    made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in list(graph):
        if node.op_type == "Cast":
            continue
        wanted = FLOAT if node.op_type in wide else dtype
        for i, value in enumerate(node.inputs):
            if value is None or value.dtype not in FLOATS or value.dtype == wanted:
                continue
            if (value, wanted) not in made:
                cast = new_cast(value, wanted, f"{value.name}.{wanted.name.lower()}")
                graph.insert_before(node, cast)
                made[value, wanted] = cast.outputs[0]
            node.replace_input_with(i, made[value, wanted])


def _cast_output(graph: ir.Graph, index: int, dtype: ir.DataType) -> None:
    inner = graph.outputs[index]
    name, inner.name = inner.name, f"{inner.name}.inner"
    cast = new_cast(inner, dtype, str(name))
    graph.append(cast)
    graph.outputs[index] = cast.outputs[0]
