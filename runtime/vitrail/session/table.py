"""The embedding table of an export, as every session reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitrail.errors import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path

    from vitrail.core import Float
    from vitrail.manifest import DecoderContract


def open_table(path: Path, contract: DecoderContract) -> Float:
    """The embedding table [vocab_size, hidden_size], mapped. Raises ArtifactError for anything else."""
    try:
        table: Float = np.load(path, mmap_mode="r")
    except (ValueError, OSError) as error:
        reason = str(error).strip().partition("\n")[0][:300]
        raise ArtifactError(f"{path.name} is no array ({reason}); export again") from error
    if table.shape != (contract.vocab_size, contract.hidden_size):
        raise ArtifactError(
            f"{path.name} is {list(table.shape)}, the manifest says {[contract.vocab_size, contract.hidden_size]}; export again"
        )
    return table
