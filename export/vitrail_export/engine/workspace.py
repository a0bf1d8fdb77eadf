"""The folder of an export's engines, with room for what a build needs in between."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitrail.errors import ExportError


@contextmanager
def scratch_folder(engines: Path) -> Iterator[Path]:
    """An empty folder in `engines`, which is made, too; what a killed build left there is removed.

    Raises ExportError while another process builds into `engines`.
    """
    engines.mkdir(exist_ok=True)
    scratch = engines / ".build"
    with (engines / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ExportError(
                f"another process builds engines in '{engines}'; wait until it has ended"
            ) from error
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
