"""What a graph computes in, and what that makes of the tensors around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vitrail.manifest import DType

Arithmetic = Literal["float32", "float16", "bfloat16"]
CACHE_ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
ENGINE_CACHE_BYTES = 2
"""Of an element of a TensorRT engine's KV cache, in every precision."""
BFLOAT16_TARGET = 80
"""The least compute capability, sm_80, that computes in bfloat16."""


def port_dtype(arithmetic: Arithmetic) -> DType:
    """Of tensors that pass through the host, which has no bfloat16: float32 stands for it, and the graph rounds."""
    return "float32" if arithmetic == "bfloat16" else arithmetic
