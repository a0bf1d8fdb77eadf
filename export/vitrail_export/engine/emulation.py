"""bfloat16 on a CPU: ONNX Runtime has no such kernels there, so each result is computed in float32 and rounded."""

from __future__ import annotations

import onnx_ir as ir

from vitrail_export.engine.lowering import BFLOAT16, FLOAT, cast_weight, new_cast, values

MOVES = frozenset(
    {"Reshape", "Transpose", "Split", "Slice", "Gather", "Concat", "Expand", "TensorScatter", "Identity"}
)
"""What yields values it was given has nothing to round."""


def emulate_bfloat16(model: ir.Model) -> None:
    """In place, a graph lowered to bfloat16: float32 types, with every computed value rounded to bfloat16."""
    graph = model.graph
    for value in graph.initializers.values():
        if value.dtype == BFLOAT16:
            cast_weight(value, FLOAT)
    rounded = [value for value in values(graph) if value.dtype == BFLOAT16]
    for value in rounded:
        value.dtype = FLOAT
        maker = value.producer()
        if maker is not None and maker.op_type not in MOVES:
            _round(graph, maker, value)


def _round(graph: ir.Graph, maker: ir.Node, value: ir.Value) -> None:
    """A cast to bfloat16 rounds to nearest; casting back makes it float32 again."""
    used = [(node, i) for node, i in value.uses()]
    down = new_cast(value, BFLOAT16, f"{value.name}.rounded")
    if maker.op_type == "Cast":
        maker.attributes["to"] = ir.AttrInt64("to", int(FLOAT))
    up = new_cast(down.outputs[0], FLOAT, f"{value.name}.emulated")
    graph.insert_after(maker, [down, up])
    for node, i in used:
        node.replace_input_with(i, up.outputs[0])
