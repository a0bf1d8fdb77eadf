"""The near end of a worker: asks it, with a limit on every answer, and says how it ended where it did."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

QUIT_S = 10.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class WorkerError(Exception):
    """Why a worker gave no answer, in one line."""


class Worker:
    """A process that speaks as bench.peers.worker does. Its stderr goes to `log`."""

    def __init__(
        self, command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=None if environment is None else {**os.environ, **environment},
                text=True,
                start_new_session=True,
            )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Its answer. Raises WorkerError for an error, an end, nonsense, or none in time: in all but the first case
        the process is gone afterwards.
        """
        self._send(request)
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            self._kill()
            raise WorkerError(f"no answer to '{request['do']}' within {timeout_s:.0f} s; ended it") from None
        if line is None:
            raise WorkerError(self._ending())
        answer = _object(line)
        if answer is None:
            self._kill()
            raise WorkerError(f"answered '{request['do']}' by no JSON object: {line.strip()[:80]}")
        if "error" in answer:
            raise WorkerError(str(answer["error"]))
        return answer

    def close(self) -> None:
        """Let it end, or end it."""
        with contextlib.suppress(WorkerError, subprocess.TimeoutExpired):
            self._send({"do": "quit"})
            self._process.wait(QUIT_S)
        self._kill()

    @property
    def peak_rss_bytes(self) -> int:
        """The most resident memory that it has had; 0 where it is gone."""
        lines = self._proc("status").splitlines()
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)

    @property
    def cpu_s(self) -> float:
        """Processor time that it has used; 0 where it is gone."""
        fields = self._proc("stat").rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / TICKS_PER_S if fields else 0.0

    def _proc(self, name: str) -> str:
        try:
            return Path(f"/proc/{self._process.pid}/{name}").read_text(encoding="utf-8")
        except OSError:
            return ""

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _send(self, request: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError):
            raise WorkerError(self._ending()) from None

    def _ending(self) -> str:
        """How it ended, and what it said last."""
        code = self._process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"ended with {how}" + (f": {lines[-1].strip()[:200]}" if lines else "")

    def _kill(self) -> None:
        """The process and what it started, its own group alone."""
        if self.alive:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()


def _object(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
