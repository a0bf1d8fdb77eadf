"""The layers that vision encoder, projector and decoder are made of. Attribute path = checkpoint name = node name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from vitrail_export.graph import (
    CONTRIB,
    Array,
    Bits,
    Codes,
    Fill,
    Form,
    Quantizer,
    Weight,
    WeightSource,
    row_blocks,
    vector,
)
from vitrail_export.quantize import Rounding, block_size, pack_nibbles

FLOAT = ir.DataType.FLOAT
SMALLEST = 1e-30
"""What the largest activation of a row of zeros is taken for."""


class LayerNorm(nn.Module):  # type: ignore[misc]
    """Layer normalization over the last axis, accumulated in float32 whatever the graph's dtype."""

    def __init__(self, size: int, *, eps: float, form: Form) -> None:
        super().__init__()
        dtype = norm_dtype(form)
        self.weight, self.bias = vector(size, dtype), vector(size, dtype)
        self.eps, self.form = eps, form

    def forward(self, op: Any, x: Any) -> Any:
        def normalize(y: Any) -> Any:
            return op.LayerNormalization(y, self.weight, self.bias, epsilon=self.eps)

        return in_norm_dtype(op, self.form, x, normalize)


class RMSNorm(nn.Module):  # type: ignore[misc]
    """Root mean square normalization over the last axis, accumulated in float32 whatever the graph's dtype."""

    def __init__(self, size: int, *, eps: float, form: Form) -> None:
        super().__init__()
        self.weight = vector(size, norm_dtype(form))
        self.eps, self.form = eps, form

    def forward(self, op: Any, x: Any) -> Any:
        return rms_normalize(op, self.form, x, self.weight, eps=self.eps)


def rms_normalize(op: Any, form: Form, x: Any, weight: Any, *, eps: float) -> Any:
    return in_norm_dtype(op, form, x, lambda y: op.RMSNormalization(y, weight, epsilon=eps))


def norm_dtype(form: Form) -> ir.DataType:
    """ONNX Runtime's kernels accumulate half precision in float32 themselves; other engines are told by casts."""
    return form.dtype if form.dialect == "ort" else FLOAT


def in_norm_dtype(op: Any, form: Form, x: Any, compute: Callable[[Any], Any]) -> Any:
    if norm_dtype(form) == form.dtype:
        return compute(x)
    return op.Cast(compute(op.Cast(x, to=FLOAT)), to=form.dtype)


def cast(op: Any, x: Any, held: ir.DataType, wanted: ir.DataType) -> Any:
    """x, which is of `held`, in `wanted`."""
    return x if held == wanted else op.Cast(x, to=wanted)


def linear(
    inputs: int,
    outputs: int,
    *,
    form: Form,
    bias: bool,
    parts: tuple[str, ...] = (),
) -> nn.Module:
    """x [..., inputs] -> [..., outputs]. `parts` names sibling matrices of the checkpoint that are stacked into one."""
    if form.int8 is not None:
        kind = TensorInt8Linear if form.int8 == "tensor" else RowInt8Linear
        return kind(inputs, outputs, form=form, bias=bias, parts=parts)
    if form.bits is None:
        return FloatLinear(inputs, outputs, form=form, bias=bias, parts=parts)
    weight_only = NBitsLinear if form.dialect == "ort" else DequantizedLinear
    return weight_only(inputs, outputs, form=form, bias=bias, parts=parts, bits=form.bits)


class FloatLinear(nn.Module):  # type: ignore[misc]
    def __init__(self, inputs: int, outputs: int, *, form: Form, bias: bool, parts: tuple[str, ...]) -> None:
        super().__init__()
        self.weight = Weight([inputs, outputs], form.dtype, transposed(form.dtype, parts))
        self.bias = Weight([outputs], form.dtype, stacked_vector(form.dtype, parts)) if bias else None

    def forward(self, op: Any, x: Any) -> Any:
        y = op.MatMul(x, self.weight)
        return y if self.bias is None else op.Add(y, self.bias)


class NBitsLinear(nn.Module):  # type: ignore[misc]
    """ONNX Runtime's MatMulNBits; accuracy level 4 lets a CPU multiply in int8."""

    def __init__(
        self, inputs: int, outputs: int, *, form: Form, bias: bool, parts: tuple[str, ...], bits: Bits
    ) -> None:
        super().__init__()
        block = block_size(inputs, ".".join(parts))
        made = Quantized(parts, bits, block, form.quantizer or Rounding())
        packed = [outputs, inputs // block, block * bits // 8]
        self.weight = Weight(packed, ir.DataType.UINT8, made.packed_codes())
        self.scales = Weight([outputs, inputs // block], form.dtype, made.scales(form.dtype))
        self.bias = Weight([outputs], form.dtype, stacked_vector(form.dtype, parts)) if bias else None
        self.attributes = {"K": inputs, "N": outputs, "bits": bits, "block_size": block, "accuracy_level": 4}

    def forward(self, op: Any, x: Any) -> Any:
        return op.MatMulNBits(
            x, self.weight, self.scales, None, None, self.bias, **self.attributes, _domain=CONTRIB, _version=1
        )


class Int8Linear(nn.Module):  # type: ignore[misc]
    """Weights in int8 with a scale for each output channel, for products in int8."""

    def __init__(
        self, inputs: int, outputs: int, *, form: Form, bias: bool, parts: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        made = Quantized(parts, 8, inputs, form.quantizer or Rounding())
        self.weight = Weight([inputs, outputs], ir.DataType.INT8, made.signed_codes((inputs, outputs)))
        self.scales = Weight([outputs], form.dtype, made.scales(form.dtype))
        self.bias = Weight([outputs], form.dtype, stacked_vector(form.dtype, parts)) if bias else None


class TensorInt8Linear(Int8Linear):
    """Activations by one scale for the whole tensor: the fastest, but every row depends on its neighbours."""

    def forward(self, op: Any, x: Any) -> Any:
        return op.DynamicQuantizeMatMul(
            x, self.weight, self.scales, None, self.bias, _domain=CONTRIB, _version=1
        )


class CodedInt8Linear(Int8Linear):
    """Of rows that are codes already, without bias: each row's step is still to be multiplied by."""

    def forward(self, op: Any, codes: Any) -> Any:
        return op.MatMulIntegerToFloat(
            codes, self.weight, 1.0, self.scales, _middle(op), _domain=CONTRIB, _version=1
        )


class RowInt8Linear(CodedInt8Linear):
    """Activations by a scale for each row, so that no row depends on its neighbours."""

    def forward(self, op: Any, x: Any) -> Any:
        codes, step = row_codes(op, x)
        y = op.Mul(super().forward(op, codes), step)
        return y if self.bias is None else op.Add(y, self.bias)


def row_codes(op: Any, x: Any) -> tuple[Any, Any]:
    """x [..., size] -> uint8 codes around 128 [..., size], the step between two of them [..., 1]. Multiplying a row by
    a positive number changes its step alone.
    """
    largest = op.Clip(op.ReduceMax(op.Abs(x), [-1], keepdims=1), SMALLEST)
    return op.QuantizeLinear(op.Mul(x, op.Div(127.0, largest)), 1.0, _middle(op)), op.Div(largest, 127.0)


def _middle(op: Any) -> Any:
    return op.Constant(value=ir.tensor(np.array(128, np.uint8)))


class DequantizedLinear(nn.Module):  # type: ignore[misc]
    """Blocked DequantizeLinear before a MatMul: the standard form of weight-only quantization.

    ONNX Runtime dequantizes to float32 and float16 alone, so bfloat16 goes by way of float32; its CUDA provider makes no
    MatMulNBits of that, and restores no int8 by blocks, so it is refused there.
    """

    def __init__(
        self, inputs: int, outputs: int, *, form: Form, bias: bool, parts: tuple[str, ...], bits: Bits
    ) -> None:
        super().__init__()
        self.block = block_size(inputs, ".".join(parts))
        dtype = ir.DataType.INT4 if bits == 4 else ir.DataType.INT8
        made = Quantized(parts, bits, self.block, form.quantizer or Rounding())
        self.weight = Weight([inputs, outputs], dtype, made.signed_codes((inputs, outputs)))
        self.scales = Weight(
            [inputs // self.block, outputs], form.dtype, made.scales(form.dtype, transpose=True)
        )
        self.bias = Weight([outputs], form.dtype, stacked_vector(form.dtype, parts)) if bias else None

    def forward(self, op: Any, x: Any) -> Any:
        wide = FLOAT if self.scales.dtype == ir.DataType.BFLOAT16 else self.scales.dtype
        scales = cast(op, self.scales, self.scales.dtype, wide)
        weight = op.DequantizeLinear(self.weight, scales, axis=0, block_size=self.block)
        y = op.MatMul(x, cast(op, weight, wide, self.scales.dtype))
        return y if self.bias is None else op.Add(y, self.bias)


def sources(name: str, parts: tuple[str, ...], leaf: str) -> list[str]:
    """The checkpoint's names behind a graph weight: its own, or its module's siblings `parts`."""
    module = name.rpartition(".")[0]
    parent = module.rpartition(".")[0]
    return [f"{parent}.{part}.{leaf}" for part in parts] if parts else [f"{module}.{leaf}"]


def transposed(dtype: ir.DataType, parts: tuple[str, ...]) -> Fill:
    """[outputs, inputs] matrices, stacked by outputs -> one [inputs, outputs] matrix."""

    def fill(name: str, source: WeightSource) -> Iterator[Array]:
        names = sources(name, parts, "weight")
        rows = sum(source.shape(part)[0] for part in names)
        matrix = np.empty((source.shape(names[0])[1], rows), dtype.numpy())
        for start, block in _stacked_rows(source, names):
            matrix[:, start : start + len(block)] = block.T
        yield matrix

    return fill


def stacked_vector(dtype: ir.DataType, parts: tuple[str, ...]) -> Fill:
    def fill(name: str, source: WeightSource) -> Iterator[Array]:
        for part in sources(name, parts, "bias"):
            yield source.load(part).astype(dtype.numpy())

    return fill


@dataclass(frozen=True, slots=True)
class Quantized:
    """What stacked matrices are quantized to, and by whom."""

    parts: tuple[str, ...]
    bits: Bits
    block: int
    quantizer: Quantizer

    def rows(self, name: str, source: WeightSource) -> Iterator[tuple[int, Codes]]:
        """(first row, codes) over the rows of all parts of a graph's weight `name`."""
        offset = 0
        for part in sources(name, self.parts, "weight"):
            for start, codes in self.quantizer.rows(source, part, bits=self.bits, block=self.block):
                yield offset + start, codes
            offset += source.shape(part)[0]

    def packed_codes(self) -> Fill:
        def fill(name: str, source: WeightSource) -> Iterator[Array]:
            for _, (codes, _) in self.rows(name, source):
                yield pack_nibbles(codes) if self.bits == 4 else codes

        return fill

    def signed_codes(self, shape: tuple[int, int]) -> Fill:
        """Signed codes, transposed to `shape` [inputs, outputs]; two to a byte for int4."""

        def fill(name: str, source: WeightSource) -> Iterator[Array]:
            matrix = np.empty(shape, np.uint8)
            for start, (codes, _) in self.rows(name, source):
                signed = codes - np.uint8(1 << (self.bits - 1))
                matrix[:, start : start + len(codes)] = signed.reshape(len(codes), -1).T
            yield pack_nibbles((matrix & 0x0F).reshape(-1)) if self.bits == 4 else matrix

        return fill

    def scales(self, dtype: ir.DataType, *, transpose: bool = False) -> Fill:
        def fill(name: str, source: WeightSource) -> Iterator[Array]:
            found = np.concatenate([scales for _, (_, scales) in self.rows(name, source)])
            scales = found.astype(dtype.numpy())
            yield scales.T if transpose else scales

        return fill


def _stacked_rows(source: WeightSource, names: list[str]) -> Iterator[tuple[int, Array]]:
    offset = 0
    for name in names:
        for start, block in row_blocks(source, name):
            yield offset + start, block
        offset += source.shape(name)[0]
