"""How much memory this machine lets a process use. Reads /proc and the control group; the one override is here."""

from __future__ import annotations

import os
from pathlib import Path

from vitrail.plan.size import parse_size

OVERRIDE = "VITRAIL_MEMORY"
"""Environment variable: a size that counts instead of the machine's, or `off` for no check at load."""

_GROUPS = ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_limit_bytes(root: Path = Path("/")) -> int | None:
    """Of the machine, or of the container where that is less; None for no check, or where neither tells.

    Raises OptionError where the override is no size.
    """
    override = os.environ.get(OVERRIDE, "")
    if override == "off":
        return None
    if override:
        return parse_size(override)
    limits = [_total(root), *(_group_limit(root / name) for name in _GROUPS)]
    return min((limit for limit in limits if limit), default=None)


def _total(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemTotal:")), None)


def _group_limit(path: Path) -> int | None:
    """A group without a limit says `max`, or a number beyond any machine's memory."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
