"""A decoder's engine finds greedy tokens itself, so that a GPU hands out ids instead of logits."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

INT32, FLOAT = ir.DataType.INT32, ir.DataType.FLOAT


def add_greedy(model: ir.Model) -> None:
    """In place: outputs `greedy` int32 [m], the lowest id of the largest logit, and `greedy_logit` float32 [m].

    By two reductions: TopK over a vocabulary is slow in TensorRT (https://github.com/onnx/onnx-tensorrt/issues/669).
    Where no logit is finite, neither is greedy_logit, or greedy is the vocabulary's size.
    """
    graph = model.graph
    logits = next(value for value in graph.outputs if value.name == "logits")
    assert logits.shape is not None
    rows, vocab = logits.shape[0], int(logits.shape[-1])
    last = _constant(graph, "greedy.axis", np.array([-1], np.int64))
    ids = _constant(graph, "greedy.ids", np.arange(vocab, dtype=np.int32))
    beyond = _constant(graph, "greedy.beyond", np.array(vocab, np.int32))
    top = _node(graph, "ReduceMax", [logits, last], "greedy.top", FLOAT, keepdims=1)
    equal = _node(graph, "Equal", [logits, top], "greedy.equal", ir.DataType.BOOL)
    candidates = _node(graph, "Where", [equal, ids, beyond], "greedy.candidates", INT32)
    token = _node(graph, "ReduceMin", [candidates, last], "greedy", INT32, keepdims=0)
    logit = _node(graph, "Squeeze", [top, last], "greedy_logit", FLOAT)
    for value in (token, logit):
        value.shape = ir.Shape([rows])
        graph.outputs.append(value)


def _node(
    graph: ir.Graph, op: str, inputs: list[ir.Value], name: str, dtype: ir.DataType, **attributes: int
) -> ir.Value:
    made = ir.Value(name=name, type=ir.TensorType(dtype))
    graph.append(ir.node(op, inputs, attributes, outputs=[made], name=name))
    return made


def _constant(
    graph: ir.Graph, name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]
) -> ir.Value:
    tensor = ir.Tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.register_initializer(value)
    return value
