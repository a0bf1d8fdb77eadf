"""The embedding table of an export, as every session reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from vitrail.errors import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from vitrail.core import Float, Int32
    from vitrail.manifest import DecoderContract

SCALES = "token_embedding_scales.npy"
"""Beside an int8 or int4 table: its scales."""


class Table(Protocol):
    """Rows of embeddings by token id."""

    def __getitem__(self, ids: Int32) -> Float:
        """Ids of any shape -> [*shape, hidden_size], float16 or float32."""
        ...


@dataclass(frozen=True, slots=True)
class QuantizedTable:
    """codes int8 [vocab, d], or uint8 [vocab, d / 2] with the even element in the low half and 8 for zero;
    scales float16 [vocab, d / block]. Both mapped: only the rows that are asked for are read.
    """

    codes: Any
    scales: Any

    def __getitem__(self, ids: Int32) -> Float:
        codes, scales = self.codes[ids], self.scales[ids]
        if codes.dtype == np.uint8:
            halves = np.stack([codes & 15, codes >> 4], axis=-1)
            codes = halves.reshape(*ids.shape, 2 * codes.shape[-1]).astype(np.int8) - 8
        block = codes.shape[-1] // scales.shape[-1]
        blocks = codes.reshape(*scales.shape, block) * scales.astype(np.float32)[..., None]
        rows: Float = blocks.reshape(codes.shape)
        return rows


def open_table(path: Path, contract: DecoderContract) -> Table:
    """The embedding table [vocab_size, hidden_size], mapped. Raises ArtifactError for anything else."""
    rows, size = contract.vocab_size, contract.hidden_size
    if contract.embeddings == "float":
        return _mapped(path, [rows, size])  # type: ignore[no-any-return]
    codes = _mapped(path, [rows, size // 2 if contract.embeddings == "int4" else size])
    return QuantizedTable(codes, _mapped(path.with_name(SCALES), [rows, None]))


def _mapped(path: Path, shape: list[int | None]) -> Any:
    try:
        table = np.load(path, mmap_mode="r")
    except (ValueError, OSError) as error:
        reason = str(error).strip().partition("\n")[0][:300]
        raise ArtifactError(f"{path.name} is no array ({reason}); export again") from error
    if len(table.shape) != len(shape) or any(
        b not in (a, None) for a, b in zip(table.shape, shape, strict=True)
    ):
        raise ArtifactError(f"{path.name} is {list(table.shape)}, the manifest says {shape}; export again")
    return table
