"""A virtual environment for each peer, from its own pinned requirements."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from bench.peers.process import WorkerError

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENTS = ROOT / ".venv-peers"
# llama.cpp is built for this very processor: the wheels of it that exist know no AMX and no AVX-512.
FLAGS = f"-w -include{HERE / 'amx.h'}"
BUILD = {
    "llama.cpp": {
        "CMAKE_ARGS": shlex.join(
            [
                "-DGGML_NATIVE=ON",
                "-DLLAVA_BUILD=OFF",
                f"-DCMAKE_C_FLAGS={FLAGS}",
                f"-DCMAKE_CXX_FLAGS={FLAGS}",
            ]
        )
    }
}


def installed_python(name: str, *, timeout_s: float) -> Path:
    """The Python of a peer's environment, made first where it is missing or its requirements changed.

    Raises WorkerError where it cannot be made, with what pip said last.
    """
    requirements = HERE / "requirements" / f"{name}.txt"
    directory = ENVIRONMENTS / name
    python, stamp = directory / "bin" / "python", directory / "requirements.txt"
    if stamp.exists() and stamp.read_bytes() == requirements.read_bytes():
        return python
    print(f"installing {name} in {directory.relative_to(ROOT)}", file=sys.stderr)
    run([sys.executable, "-m", "venv", str(directory)], timeout_s=timeout_s)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*pip, "--requirement", str(requirements)], timeout_s=timeout_s, environment=BUILD.get(name))
    stamp.write_bytes(requirements.read_bytes())
    return python


def run(command: list[str], *, timeout_s: float, environment: Mapping[str, str] | None = None) -> None:
    """Raise WorkerError where it fails or takes longer, with its last line."""
    merged = {**os.environ, **(environment or {})}
    try:
        done = subprocess.run(
            command, env=merged, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise WorkerError(f"'{Path(command[0]).name}' took longer than {timeout_s:.0f} s") from None
    except OSError as error:
        raise WorkerError(f"'{Path(command[0]).name}' cannot be run: {error.strerror}") from None
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        last = next((line for line in reversed(lines) if "error" in line.lower()), (lines or ["no word"])[-1])
        raise WorkerError(f"'{Path(command[0]).name}' failed: {last.strip()[:200]}")
