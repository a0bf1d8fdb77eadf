"""Activations that are easier to quantize, with nothing else changed: SmoothQuant (Xiao et al., 2023, mit-han-lab/smoothquant).

What a normalization gives is divided by a factor for each channel, and the matrices behind it are multiplied by it. The
factors go into the normalization's own weights, so the graph computes the same as before and takes no longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from vitrail_export.graph import Array
from vitrail_export.pairs import Range, name_of, products

NORMS = frozenset({"LayerNormalization", "RMSNormalization"})
SMALLEST = 1e-5
"""What a channel of zeros is taken for."""


def equalize(model: ir.Model, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """In place, a float32 graph; the ranges of its products afterwards. Products that are not behind a normalization alone
    stay as they are.
    """
    found, matrices = dict(ranges), list(products(model.graph))
    for norm in [node for node in model.graph if node.op_type in NORMS]:
        behind = [node for node in matrices if node.inputs[0] is norm.outputs[0]]
        if not behind or len(behind) != len(norm.outputs[0].consumers()):
            continue
        reached = ranges[name_of(behind[0])]
        factors = smoothing(reached.magnitude, [_held(node.inputs[1]) for node in behind])
        for weight in norm.inputs[1:]:
            _multiply(weight, 1 / factors)
        for product in behind:
            _multiply(product.inputs[1], factors[:, None])
            found[name_of(product)] = reached.over(factors)
    return found


def smoothing(magnitude: Array, matrices: list[Array]) -> Array:
    """Factors [channels], one in the geometric mean, after which activations and weights of a channel are of like size."""
    weights = np.max([np.abs(matrix).max(1) for matrix in matrices], axis=0)
    logarithms = 0.5 * (np.log(np.maximum(magnitude, SMALLEST)) - np.log(np.maximum(weights, SMALLEST)))
    factors: Array = np.exp(logarithms - logarithms.mean()).astype(np.float32)
    return factors


def _held(value: ir.Value) -> Array:
    held: Any = value.const_value
    array: Array = held.numpy()
    return array


def _multiply(value: ir.Value, factors: Array) -> None:
    """Made when the graph is saved, one weight at a time."""
    held: Any = value.const_value

    def make() -> ir.Tensor:
        return ir.Tensor(held.numpy() * factors, name=value.name)

    value.const_value = ir.LazyTensor(make, dtype=held.dtype, shape=held.shape, name=value.name)
