"""Safetensors files, read without a library: headers first, then single tensors or rows of them as float32.

The format (huggingface/safetensors, README): 8 bytes little-endian header length, a JSON header of that length with
dtype, shape and byte range of every tensor, then the bytes. Reading copies from the file into a fresh array, so that
nothing is mapped: what a tensor costs ends with its array.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from vitrail.errors import CheckpointError

Float32: TypeAlias = npt.NDArray[np.float32]
Shape: TypeAlias = tuple[int, ...]

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
MOST_HEADER_BYTES = 100_000_000
BLOCK_BYTES = 16 << 20
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CURE = "fetch the checkpoint again"
LFS_POINTER = b"version "  # how such a file begins; as a header's length it would be far beyond the limit


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor's bytes lie: `offset` counts from the start of the file."""

    name: str
    file: Path
    dtype: str
    shape: Shape
    offset: int

    @property
    def row_items(self) -> int:
        return math.prod(self.shape[1:])

    def read_rows(self, start: int, out: Float32) -> None:
        """Rows from `start` on into `out` (float32 [rows, row_items], contiguous), as many as it has."""
        flat, item_bytes = out.reshape(-1), ITEM_BYTES[self.dtype]
        first = self.offset + start * self.row_items * item_bytes
        step = BLOCK_BYTES // item_bytes
        with self.file.open("rb", buffering=0) as file:
            file.seek(first)
            for at in range(0, flat.size, step):
                self._read_block(file, flat[at : at + step])

    def _read_block(self, file: Any, out: Float32) -> None:
        raw = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[self.dtype]
        block = np.fromfile(file, dtype=raw, count=out.size)
        if block.size != out.size:
            raise CheckpointError(f"'{self.file}' ended while it was read; {CURE}")
        if self.dtype == "BF16":
            # The upper half of a float32.
            bits = out.view(np.uint32)
            np.left_shift(block, 16, out=bits, dtype=np.uint32)
        else:
            out[:] = block


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint directory, from headers alone: model.safetensors, or the shards of its index."""
    if (directory / SINGLE).is_file():
        return read_header(directory / SINGLE)
    if not (directory / INDEX).is_file():
        raise CheckpointError(_no_weights(directory))
    index = _weight_map(directory / INDEX)
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(index.values())):
        found = read_header(_shard(directory, shard))
        if twice := found.keys() & tensors.keys():
            raise CheckpointError(
                f"'{directory}': '{min(twice)}' is in two shards, {shard} and another; {CURE}"
            )
        tensors |= found
    lost = [name for name, shard in index.items() if name not in tensors or tensors[name].file.name != shard]
    if lost:
        raise CheckpointError(
            f"'{directory / INDEX}' places '{lost[0]}' in {index[lost[0]]}, which does not hold it; {CURE}"
        )
    return tensors


def _no_weights(directory: Path) -> str:
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt*")):
        return (
            f"'{directory}' holds pickled weights only, which can run code when read; "
            f"supported: {SINGLE} or shards with {INDEX}; convert it with safetensors first"
        )
    return f"'{directory}' has neither {SINGLE} nor {INDEX}; {CURE}"


def _weight_map(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        valid = all(isinstance(each, str) for each in weight_map.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"'{path}' is no index of shards ({error!r}); {CURE}") from error
    if not valid or not weight_map:
        raise CheckpointError(f"'{path}' maps no tensors to file names; {CURE}")
    return dict(weight_map)


def _shard(directory: Path, name: str) -> Path:
    if Path(name).name != name:
        raise CheckpointError(f"{INDEX} names '{name}'; a shard must be a file beside it")
    if not (directory / name).is_file():
        raise CheckpointError(f"'{directory}' lacks the shard {name} that {INDEX} names; {CURE}")
    return directory / name


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file. Raises CheckpointError where header, byte ranges and file size do not agree."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == LFS_POINTER:
            raise CheckpointError(
                f"'{path}' is a pointer of Git LFS in place of the weights; fetch them with: git lfs pull"
            )
        length = int.from_bytes(start, "little")
        if size < 8 or length > min(size - 8, MOST_HEADER_BYTES):
            raise CheckpointError(f"'{path}' has {size} bytes and no whole header: cut off; {CURE}")
        header = _header_json(path, file.read(length))
    data_start = 8 + length
    ranges = [
        _range(path, name, fields, data_start) for name, fields in header.items() if name != "__metadata__"
    ]
    _check_ranges(path, ranges, data_start, size)
    return {tensor.name: tensor for tensor, _ in ranges}


def _header_json(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"'{path}' has a header that is no JSON ({error}); {CURE}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"'{path}' has a header that is no JSON object; {CURE}")
    return header


def _range(path: Path, name: str, fields: Any, data_start: int) -> tuple[StoredTensor, int]:
    """(tensor, byte behind its last)."""
    try:
        dtype, shape = fields["dtype"], tuple(int(each) for each in fields["shape"])
        begin, end = (int(each) for each in fields["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"'{path}': the header entry of '{name}' is damaged ({error!r}); {CURE}"
        ) from error
    if dtype not in ITEM_BYTES:
        raise CheckpointError(f"'{path}': '{name}' has dtype {dtype}; supported: {', '.join(ITEM_BYTES)}")
    if min(shape, default=0) < 0 or begin < 0 or end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise CheckpointError(
            f"'{path}': '{name}' of {dtype} {list(shape)} has bytes {begin}..{end}, which do not fit it; {CURE}"
        )
    return StoredTensor(name, path, dtype, shape, data_start + begin), data_start + end


def _check_ranges(path: Path, ranges: list[tuple[StoredTensor, int]], start: int, size: int) -> None:
    """The format allows neither overlaps nor gaps nor bytes behind the last tensor."""
    for tensor, end in sorted(ranges, key=lambda each: (each[0].offset, each[1])):
        if tensor.offset != start:
            kind = "overlap" if tensor.offset < start else "leave a gap"
            raise CheckpointError(
                f"'{path}': the bytes of '{tensor.name}' {kind} with the tensor before it; {CURE}"
            )
        start = end
    if start != size:
        raise CheckpointError(
            f"'{path}' has {size} bytes, its header describes {start}: cut off or damaged; {CURE}"
        )


def blocks_of_rows(rows: int, row_bytes: int, *, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, int]]:
    """Row ranges (start, stop) of at most about `block_bytes` each."""
    step = max(1, block_bytes // max(1, row_bytes))
    return ((start, min(start + step, rows)) for start in range(0, rows, step))
