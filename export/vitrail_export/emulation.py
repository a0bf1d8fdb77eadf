"""A graph in half precision as a GPU computes it, on a CPU: every operator in float32 between casts, so that what it yields is
rounded, and overflows, as a GPU's would.

ONNX Runtime has no kernels of bfloat16 there, and takes float16 for float32 from node to node, so that nothing overflows.
Inputs, outputs and weights stay as they are. An operator that is several in one, GroupQueryAttention say, rounds once.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from vitrail.manifest import Manifest
from vitrail_export.engine.lowering import BFLOAT16, FLOAT, new_cast

MOVES = frozenset(
    {"Cast", "Reshape", "Transpose", "Split", "Slice", "Gather", "Concat", "TensorScatter", "Identity"}
)
"""What a CPU does in every type: nothing is computed."""
TYPES = {"Shape": ir.DataType.INT64, "LessOrEqual": ir.DataType.BOOL}
"""Of results that are of no input's type."""
CACHES = 3
"""GroupQueryAttention's input that its second output replaces; the third follows."""


@contextmanager
def emulated(
    artifacts: Path, manifest: Manifest, graphs: Sequence[str], *, dtype: ir.DataType = BFLOAT16
) -> Iterator[Manifest]:
    """The manifest of the same export with emulations of these graphs, which compute in `dtype`; they are beside it until the
    block ends.

    Weights stay in their files; sessions that are to be cheap in memory are opened without optimization.
    """
    files = {graph: artifacts / f".{graph}.emulated.onnx" for graph in graphs}
    try:
        for graph, file in files.items():
            model = ir.load(artifacts / manifest.artifacts[graph].path)
            emulate(model, dtype)
            ir.save(model, file)
        held = manifest.artifacts
        changed = {graph: held[graph].model_copy(update={"path": file.name}) for graph, file in files.items()}
        yield manifest.model_copy(update={"artifacts": held | changed})
    finally:
        for file in files.values():
            file.unlink(missing_ok=True)


def emulate(model: ir.Model, dtype: ir.DataType = BFLOAT16, *, native: Container[str] = ()) -> None:
    """In place, what is computed in `dtype`. native: operators left as they are."""
    widened: dict[ir.Value, ir.Value] = {}
    for node in list(model.graph):
        _tell_types(node)
        if node.op_type in MOVES or node.op_type in native:
            continue
        for i, value in enumerate(node.inputs):
            if value is not None and value.dtype == dtype:
                if value not in widened:
                    cast = new_cast(value, FLOAT, f"{value.name}.widened")
                    model.graph.insert_before(node, cast)
                    widened[value] = cast.outputs[0]
                node.replace_input_with(i, widened[value])
        for value in node.outputs:
            if value.dtype == dtype:
                _round(model.graph, node, value)


def _tell_types(node: ir.Node) -> None:
    """Of outputs whose type no inference knows, since an operator of ONNX Runtime's own came before."""
    for i, value in enumerate(node.outputs):
        if value.dtype is None and value.uses():
            value.dtype = _type(node, i)


def _type(node: ir.Node, output: int) -> ir.DataType | None:
    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int())
    if node.op_type in TYPES:
        return TYPES[node.op_type]
    at = CACHES + output - 1 if output and node.op_type == "GroupQueryAttention" else 0
    source = node.inputs[at] if node.inputs else None
    return None if source is None else source.dtype


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """The node yields float32, and a cast of it takes the place and name of `value`."""
    assert value.dtype is not None
    name, users = str(value.name), list(value.uses())
    cast = new_cast(value, value.dtype, name)
    value.name, value.dtype = f"{name}.wide", FLOAT
    graph.insert_after(node, cast)
    for user, i in users:
        user.replace_input_with(i, cast.outputs[0])
    for i, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[i] = cast.outputs[0]
