"""Sizes as people write them: 8GiB, 512MiB, 16GB."""

from __future__ import annotations

import re

from vitrail.errors import OptionError

MIB, GIB = 1 << 20, 1 << 30
_UNITS = {"": 1, "B": 1, "MB": 10**6, "MiB": MIB, "GB": 10**9, "GiB": GIB}


def parse_size(text: str) -> int:
    """Bytes. Raises OptionError for anything but a positive number with one of the units, or none for bytes."""
    found = re.fullmatch(r"\s*(\d{1,12}(?:\.\d{1,6})?)\s*([A-Za-z]*)\s*", text)
    size = float(found[1]) * _UNITS[found[2]] if found and found[2] in _UNITS else 0.0
    if size < 1:
        raise OptionError(f"'{text}' is no size of memory; give one such as 8GiB, 512MiB or 16GB")
    return int(size)


def show_size(size_bytes: int) -> str:
    """In GiB, small ones in MiB."""
    return f"{size_bytes / GIB:.2f} GiB" if size_bytes >= GIB // 10 else f"{size_bytes / MIB:.0f} MiB"
