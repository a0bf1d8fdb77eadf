"""What a tree of processes holds in memory, sampled: proportional set sizes, so that what is shared counts once."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

PROC = Path("/proc")
INTERVAL_S = 0.5


class Sampler:
    """Looks every INTERVAL_S at a process and its descendants, while the block runs; `peak` is the fullest moment."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.peak: dict[str, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._over.wait(INTERVAL_S):
            self.look()

    def look(self) -> dict[str, int]:
        """Bytes of each process now, by name."""
        now: dict[str, int] = {}
        for pid in tree(self.pid):
            with contextlib.suppress(OSError):  # it ended meanwhile
                name = process_name(pid)
                now[name] = now.get(name, 0) + resident_bytes(pid)
        if sum(now.values()) > sum(self.peak.values()):
            self.peak = now
        return now

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.look()


def tree(pid: int) -> list[int]:
    """The process and its descendants, from their parents' names for them."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                children.setdefault(int(stat[1]), []).append(int(entry.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def resident_bytes(pid: int) -> int:
    """Its proportional set size: its own pages, and of those that it shares with n processes an n-th."""
    lines = (PROC / str(pid) / "smaps_rollup").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("Pss:")))


def process_name(pid: int) -> str:
    """A model of the python backend by its name, the bench's own process as `process`, others by their program."""
    if pid == os.getpid():
        return "process"
    words = (PROC / str(pid) / "cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    program = Path(words[0]).name
    if program == "triton_python_backend_stub":
        return Path(words[1]).parent.parent.name
    return "launcher" if program.startswith("python") else program
