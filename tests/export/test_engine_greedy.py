"""Greedy tokens as a decoder's engine finds them, beside numpy's."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from vitrail_export.engine.greedy import add_greedy

VOCAB = 1000


@pytest.fixture(scope="module")
def greedy():
    """logits [m, VOCAB] -> (greedy, greedy_logit)"""
    given, logits = (
        ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["wanted", VOCAB]))
        for name in ("given", "logits")
    )
    node = ir.node("Identity", [given], outputs=[logits])
    graph = ir.Graph([given], [logits], nodes=[node], opset_imports={"": 24}, name="decoder")
    model = ir.Model(graph, ir_version=11)
    add_greedy(model)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda rows: session.run(["greedy", "greedy_logit"], {"given": rows})


def test_the_largest_logit_is_found(greedy):
    rows = np.random.default_rng(0).normal(size=(7, VOCAB)).astype(np.float32)
    tokens, logits = greedy(rows)
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens, rows.argmax(-1))
    np.testing.assert_array_equal(logits, rows.max(-1))


def test_of_equal_logits_the_lowest_id_is_taken(greedy):
    rows = np.zeros((3, VOCAB), np.float32)
    rows[1, [999, 17, 400]] = 2
    rows[2] = -np.inf
    rows[2, [500, 501]] = -3
    assert greedy(rows)[0].tolist() == [0, 17, 500]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_told(greedy, value):
    assert not np.isfinite(greedy(np.full((1, VOCAB), value, np.float32))[1]).any()
