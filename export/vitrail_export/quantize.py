"""Weight-only quantization: symmetric, one scale for each block of inputs of each output channel, rounded to nearest.

Codes are unsigned with the middle as zero (8 for int4, 128 for int8), as ONNX Runtime's MatMulNBits reads them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vitrail.errors import ExportError
from vitrail_export.graph import Array, Bits, Codes, WeightSource, row_blocks

BLOCK_SIZES = (128, 64, 32, 16)
SHRUNK = np.float32(0.9)
"""Of an int4 scale: what cutting off a block's largest weights may gain for the others."""


def block_size(inputs: int, name: str) -> int:
    """The largest block that divides the inputs of a weight matrix."""
    for size in BLOCK_SIZES:
        if inputs % size == 0:
            return size
    raise ExportError(
        f"'{name}' has {inputs} inputs; int8 and int4 need a multiple of {BLOCK_SIZES[-1]}: export with --precision fp16, bf16 or fp32"
    )


def scale_rows(rows: Array, *, bits: Bits, block: int) -> Array:
    """float32 [n, k] -> scales float32 [n, k / block]; 1 for a block of zeros.

    int8: the largest weight of a block becomes 127 or -127. int4, whose codes reach from -8 to 7: it becomes 7.5 or -7.5, or
    what is nearer to all of the block, a tenth beyond. Positive, since TensorRT takes no other scales.
    """
    blocks = rows.reshape(rows.shape[0], -1, block)
    widest = np.maximum(blocks.max(axis=2), -blocks.min(axis=2))
    scales: Array = widest / np.float32(127 if bits == 8 else 7.5)
    scales[scales == 0] = 1
    return scales if bits == 8 else _nearest(blocks, [scales, SHRUNK * scales])


def _nearest(blocks: Array, candidates: list[Array]) -> Array:
    """Of int4's scales for each block, the one by which rounding loses least."""
    losses = [np.square(_steps(blocks, scales) * scales[..., None] - blocks).sum(2) for scales in candidates]
    best: Array = np.choose(np.argmin(losses, axis=0), candidates)
    return best


def _steps(blocks: Array, scales: Array) -> Array:
    steps: Array = blocks * (1 / scales)[..., None]
    np.rint(steps, out=steps)
    return np.clip(steps, -8, 7, out=steps)


def round_rows(rows: Array, *, bits: Bits, block: int) -> Codes:
    """float32 [n, k] -> the nearest codes, by the scales of `scale_rows`."""
    scales = scale_rows(rows, bits=bits, block=block)
    codes: Array = rows.reshape(*scales.shape, block) * (1 / scales)[..., None]
    np.rint(codes, out=codes)
    codes += 1 << (bits - 1)
    return Codes(np.clip(codes, 0, (1 << bits) - 1, out=codes).astype(np.uint8), scales)


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


def pack_nibbles(codes: Array) -> Array:
    """uint8 codes [..., 2m] of four bits -> bytes [..., m], the even one in the low half."""
    packed: Array = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return packed
