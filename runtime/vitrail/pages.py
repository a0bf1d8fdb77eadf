"""Memory that a process holds and does not need, given back to the system (Linux; elsewhere nothing happens)."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_SMAPS = Path("/proc/self/smaps")
_HEAD = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ +(/.*)")
_WRITTEN = re.compile(r"Anonymous: +(\d+) kB")
_DONTNEED = 4  # MADV_DONTNEED


def release_mapped(file: Path) -> None:
    """Let go of what was read of a file that is mapped; what is still needed comes back from it. Where a mapping was
    written to, it stays as it is.

    ONNX Runtime packs weights and keeps the file that they came from mapped.
    """
    for start, end in _unwritten(str(file.resolve())):
        _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)


def release_freed() -> None:
    """Give back what was freed and the allocator kept, anywhere in its heaps."""
    trim = getattr(_libc(), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(ctypes.c_size_t(0))


def _unwritten(name: str) -> Iterator[tuple[int, int]]:
    """Start and end of this file's mappings without a page of their own."""
    if not _SMAPS.exists():
        return
    found: re.Match[str] | None = None
    for line in _SMAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        if "-" in line.partition(" ")[0]:
            found = _HEAD.fullmatch(line)
        elif found and found[3] == name and (written := _WRITTEN.match(line)) and written[1] == "0":
            yield int(found[1], 16), int(found[2], 16)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
