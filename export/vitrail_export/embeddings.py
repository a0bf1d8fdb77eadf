"""The token embedding table as .npy files that the runtime maps: floats, or integers and their scales."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from vitrail.manifest import TablePrecision
from vitrail.session.table import SCALES
from vitrail_export.graph import Bits, Progress, WeightSource, row_blocks
from vitrail_export.quantize import block_size, pack_nibbles, round_rows

TableDType: TypeAlias = "np.dtype[np.floating[Any]]"
EMBEDDINGS = "token_embeddings.npy"
TABLE = "text.embed_tokens.weight"
MOST_BLOCK = {8: 128, 4: 32}
"""Elements to a scale: a row is read alone, so that scales may be many."""


def save_embeddings(checkpoint: WeightSource, path: Path, dtype: TableDType, progress: Progress) -> None:
    with path.open("wb") as file:
        _write_header(file, dtype.str, checkpoint.shape(TABLE))
        for _, rows in row_blocks(checkpoint, TABLE):
            rows.astype(dtype).tofile(file)
            progress(TABLE, rows.size * dtype.itemsize)


def save_quantized_embeddings(
    checkpoint: WeightSource, out: Path, precision: Literal["int8", "int4"], progress: Progress
) -> None:
    """The table in the form of vitrail.session.table.QuantizedTable."""
    bits, block = _bits_and_block(checkpoint, precision)
    scales = []
    with (out / EMBEDDINGS).open("wb") as file:
        rows, size = checkpoint.shape(TABLE)
        stored = (rows, size if bits == 8 else size // 2)
        _write_header(file, "|i1" if bits == 8 else "|u1", stored)
        for _, table in row_blocks(checkpoint, TABLE):
            codes, steps = round_rows(table, bits=bits, block=block)
            whole = codes.reshape(len(codes), -1)
            packed = pack_nibbles(whole) if bits == 4 else (whole - np.uint8(128)).view(np.int8)
            packed.tofile(file)
            scales.append(steps.astype(np.float16))
            progress(TABLE, packed.nbytes + scales[-1].nbytes)
    np.save(out / SCALES, np.concatenate(scales))


def table_bytes(checkpoint: WeightSource, precision: TablePrecision, dtype: TableDType) -> int:
    rows, size = checkpoint.shape(TABLE)
    if precision == "float":
        return rows * size * dtype.itemsize
    bits, block = _bits_and_block(checkpoint, precision)
    return rows * (size * bits // 8 + size // block * 2)


def _bits_and_block(checkpoint: WeightSource, precision: Literal["int8", "int4"]) -> tuple[Bits, int]:
    bits: Bits = 8 if precision == "int8" else 4
    return bits, min(MOST_BLOCK[bits], block_size(checkpoint.shape(TABLE)[1], TABLE))


def _write_header(file: Any, dtype: str, shape: tuple[int, ...]) -> None:
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
