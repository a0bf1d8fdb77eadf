"""How a command ends, and what it says on stderr while it works."""

from __future__ import annotations

import functools
import os
import sys
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from vitrail.errors import VitrailError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vitrail.plan.model import Target

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED = 130


class TargetName(str, Enum):
    """What a model is served on, as a choice of the command line."""

    cpu = "cpu"
    cuda = "cuda"
    tensorrt = "tensorrt"
    jetson = "jetson"

    @property
    def target(self) -> Target:
        return self.value


PROVIDER_HELP = "What computes: cpu, openvino, cuda:0, cuda:1,memory=20GiB, tensorrt, tensorrt-rtx."
stderr = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def command(*, extra: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A command whose failures are one line on stderr and an exit code; VITRAIL_DEBUG=1 shows the traceback.

    extra: what to install where a package is missing.
    """

    def wrap(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def run(*args: P.args, **options: P.kwargs) -> R:
            try:
                return function(*args, **options)
            except (VitrailError, ModuleNotFoundError, OSError, KeyboardInterrupt) as error:
                if os.environ.get("VITRAIL_DEBUG") == "1":
                    raise
                raise typer.Exit(_report(error, extra=extra)) from None

        return run

    return wrap


def hush_grpc() -> None:
    """Before gRPC is imported: its own lines on stderr only repeat what our error says."""
    if os.environ.get("VITRAIL_DEBUG") != "1":
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def _report(error: BaseException, *, extra: str) -> int:
    """Say what went wrong; the exit code."""
    match error:
        case VitrailError():
            stderr.print(f"error: {error}")
            return error.exit_code
        case KeyboardInterrupt():
            stderr.print("interrupted")
            return INTERRUPTED
        case ModuleNotFoundError():
            wanted = extra if error.name != "onnxruntime" else "runtime]', or with an NVIDIA GPU 'vitrail[gpu"
            stderr.print(
                f"error: this needs {error.name}, which is not installed; pip install 'vitrail[{wanted}]'"
            )
        case BrokenPipeError():
            # The reader has gone; Python would complain once more when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        case OSError():
            where = f"'{error.filename}': " if error.filename else ""
            stderr.print(f"error: {where}{error.strerror or error}")
    return 1


@contextmanager
def byte_progress(total_bytes: int | None = None) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr; yields advance(what is being written, bytes so far, bytes in total)."""
    columns = (
        TextColumn("{task.description:<20.20}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
    )
    progress = Progress(*columns, console=stderr)
    task = progress.add_task("", total=total_bytes)

    def advance(what: str, done: int, total: int) -> None:
        progress.start()  # only now: what is refused before anything is written has no bar
        progress.update(task, description=what, completed=done, total=total)

    try:
        yield advance
    finally:
        if progress.live.is_started:
            progress.stop()
