"""Weight-only quantization: symmetric, one scale for each block of inputs of each output channel, rounded to nearest.

Codes are unsigned with the middle as zero (8 for int4, 128 for int8), as ONNX Runtime's MatMulNBits reads them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vitrail.errors import ExportError
from vitrail_export.graph import Array, Bits, Codes, WeightSource, row_blocks

BLOCK_SIZES = (128, 64, 32, 16)


def block_size(inputs: int, name: str) -> int:
    """The largest block that divides the inputs of a weight matrix."""
    for size in BLOCK_SIZES:
        if inputs % size == 0:
            return size
    raise ExportError(
        f"'{name}' has {inputs} inputs; int8 and int4 need a multiple of {BLOCK_SIZES[-1]}: export with --precision fp16 or fp32"
    )


def scale_rows(rows: Array, *, bits: Bits, block: int) -> Array:
    """float32 [n, k] -> scales float32 [n, k / block]; 1 for a block of zeros."""
    blocks = rows.reshape(rows.shape[0], -1, block)
    scales: Array = np.maximum(blocks.max(axis=2), -blocks.min(axis=2)) / np.float32(_limit(bits))
    scales[scales == 0] = 1
    return scales


def round_rows(rows: Array, *, bits: Bits, block: int) -> Codes:
    """float32 [n, k] -> the nearest codes."""
    scales = scale_rows(rows, bits=bits, block=block)
    codes: Array = rows.reshape(*scales.shape, block) * (1 / scales)[..., None]
    np.rint(codes, out=codes)
    codes += _limit(bits) + 1
    return Codes(codes.astype(np.uint8), scales)


def restore(quantized: Codes, *, bits: Bits) -> Array:
    """The float32 [n, k] that codes stand for."""
    steps = quantized.codes.astype(np.float32) - (1 << (bits - 1))
    restored: Array = (steps * quantized.scales[..., None]).reshape(len(steps), -1)
    return restored


class Rounding:
    """The Quantizer that rounds to the nearest code, block of rows by block of rows."""

    def rows(self, source: WeightSource, name: str, *, bits: Bits, block: int) -> Iterator[tuple[int, Codes]]:
        for start, rows in row_blocks(source, name):
            yield start, round_rows(rows, bits=bits, block=block)


def _limit(bits: Bits) -> int:
    return (1 << (bits - 1)) - 1


def pack_nibbles(codes: Array) -> Array:
    """uint8 codes [..., 2m] of four bits -> bytes [..., m], the even one in the low half."""
    packed: Array = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return packed
