"""GPU code within a library: which compute capability each piece is for, and a library without most of them.

A fat binary as nvcc embeds it: a header of 16 bytes (magic, version, its size, the size of what follows), then for each
capability a header and its machine code, compressed with zstd. Read off onnxruntime-gpu 1.31.1 for CUDA 13.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

START = struct.pack("<IHH", 0xBA55ED50, 1, 16)
HEADER = struct.Struct("<IHHQ")
ENTRY = struct.Struct("<HHIQI8xI")  # kind, version, header size, size, compressed size, capability
CAPABILITY_AT, FLAGS_AT = 28, 40
ZSTD = 0x8000
NO_DEVICE = 20  # a capability that no GPU of CUDA 13 has: the driver passes such a piece over
KERNEL = re.compile(rb"\.text\.([A-Za-z0-9_]+)")


class Piece(NamedTuple):
    """Machine code of one capability (90 for sm_90): where its header begins, and the code's place and bytes."""

    at: int
    capability: int
    start: int
    stop: int
    stored: int
    compressed: bool


class Slimmed(NamedTuple):
    """Bytes of machine code that were kept and blanked."""

    kept_bytes: int
    blanked_bytes: int


def pieces(library: bytes | bytearray) -> Iterator[Piece]:
    """Every piece of machine code in a library. Raises ValueError where a fat binary is not as described above."""
    at = library.find(START)
    while at >= 0:
        _, _, size, length = HEADER.unpack_from(library, at)
        entry, end = at + size, at + size + length
        while entry < end:
            piece = _piece(library, entry)
            if not entry < piece.start <= piece.stop <= end:
                raise ValueError(f"the fat binary at byte {at} is of an unknown form")
            yield piece
            entry = piece.stop
        at = library.find(START, end)


def _piece(library: bytes | bytearray, at: int) -> Piece:
    _, _, size, length, compressed, capability = ENTRY.unpack_from(library, at)
    (flags,) = struct.unpack_from("<Q", library, at + FLAGS_AT)
    start = at + size
    return Piece(at, capability, start, start + length, compressed or length, bool(flags & ZSTD))


def kernels(library: bytes | bytearray, piece: Piece) -> set[bytes]:
    """The (mangled) names of a piece's kernels. Needs zstandard for a compressed one."""
    code = bytes(library[piece.start : piece.start + piece.stored])
    if piece.compressed:
        import zstandard  # noqa: PLC0415 - for this alone

        code = zstandard.ZstdDecompressor().decompressobj().decompress(code)
    return set(KERNEL.findall(code))


def slim(library: bytearray, *, capability: int, wanted: Callable[[set[bytes]], bool]) -> Slimmed:
    """Blank, in place, every piece for other capabilities, and those of whose kernels none is `wanted`.

    Nothing moves: the library keeps its size and compresses to what is left. A kernel that was blanked and is called
    all the same fails as one that was never built for the GPU.
    """
    kept = blanked = 0
    for piece in list(pieces(library)):
        if piece.capability == capability and wanted(kernels(library, piece)):
            kept += piece.stop - piece.start
            continue
        if piece.capability == capability:
            struct.pack_into("<I", library, piece.at + CAPABILITY_AT, NO_DEVICE)
        library[piece.start : piece.stop] = bytes(piece.stop - piece.start)
        blanked += piece.stop - piece.start
    return Slimmed(kept, blanked)
