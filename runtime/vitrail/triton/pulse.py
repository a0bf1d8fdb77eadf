"""A model process's pulse: a file that it touches as long as it makes progress, for the supervisor to feel.

A process that is stuck, in a step that never ends or as a whole, is alive to the system and ready to Triton.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from vitrail.core import Float, Uint8
from vitrail.pages import release_freed
from vitrail.session import InSteps, VisionSession

# The folder for these files; unset, nobody is watching.
VARIABLE = "VITRAIL_PULSE"
INTERVAL_S = 0.5


def pulse_file(folder: Path, model: str) -> Path:
    return folder / f"pulse-{model}"


def keep_pulse(
    environment: Mapping[str, str], model: str, progress: Callable[[], int | None]
) -> Callable[[], None]:
    """Touch the model's file now and, from a thread, whenever it is idle or has made progress; the returned ends that.
    A process that has become idle gives back what it freed.

    progress: None while there is nothing to do, else a number that grows with the work that is done.
    """
    folder = environment.get(VARIABLE)
    if not folder:
        return lambda: None
    file, over = pulse_file(Path(folder), model), threading.Event()

    def run() -> None:
        last: int | None = None
        while not over.wait(INTERVAL_S):
            now = progress()
            if now is None or now != last:
                file.touch()
            if now is None and last is not None:
                release_freed()
            last = now

    file.touch()
    threading.Thread(target=run, name="pulse", daemon=True).start()
    return over.set


def read_pulse(folder: Path, model: str) -> int | None:
    """When the file was last touched, in ns; None where there is none (yet)."""
    try:
        return pulse_file(folder, model).stat().st_mtime_ns
    except OSError:
        return None


class Work:
    """Counts what a batched model does, run by run."""

    def __init__(self) -> None:
        self._runs = self._told = 0
        self._busy = False

    def progress(self) -> int | None:
        """None between executions, once those have been told that came and went since it was asked last."""
        ran, self._told = self._runs != self._told, self._runs
        return self._runs if self._busy or ran else None

    def __enter__(self) -> None:
        self._runs += 1
        self._busy = True

    def __exit__(self, *_: object) -> None:
        self._busy = False

    def count(self) -> None:
        self._runs += 1


class Counted(InSteps):
    """A VisionSession whose runs of at most `tiles_per_run` tiles are counted as work, one by one."""

    def __init__(self, session: VisionSession, work: Work, *, tiles_per_run: int) -> None:
        self._session, self._work, self._tiles_per_run = session, work, tiles_per_run

    def encode(self, tiles: Uint8) -> Float:
        parts = [
            self._run(tiles[first : first + self._tiles_per_run])
            for first in range(0, len(tiles) or 1, self._tiles_per_run)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def project(self, features: Float) -> Float:
        return self._session.project(features)

    def _run(self, tiles: Uint8) -> Float:
        self._work.count()
        return self._session.encode(tiles)
