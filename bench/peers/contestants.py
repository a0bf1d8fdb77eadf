"""Contestants in their processes: installed, prepared, loaded; and what each of them makes of the same inputs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from bench.peers.accuracy import accuracy
from bench.peers.contest import OURS, TRUTH, Entry, Part
from bench.peers.install import ROOT, installed_python
from bench.peers.process import Worker, WorkerError

INSTALL_S, PREPARE_S, LOAD_S, CHECK_S = 7200.0, 3600.0, 900.0, 900.0
ROWS, CONTEXT_TOKENS = 8, 2304


@dataclass(slots=True)
class Ring:
    """Those who take part in a part, and those who cannot, with the reason."""

    part: Part
    work: Path
    threads: int
    workers: dict[str, Worker] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    peaks_bytes: dict[str, int] = field(default_factory=dict)

    def enter(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            tell(f"opening {entry.name}")
            try:
                self._open(entry)
            except WorkerError as error:
                self.fail(entry.name, str(error))

    def fail(self, name: str, reason: str) -> None:
        tell(f"{name} is out: {reason}")
        self.failures[name] = reason
        if (worker := self.workers.pop(name, None)) is not None:
            worker.close()

    def note_peaks(self) -> None:
        """Before anything that is not served: the most memory of each so far."""
        self.peaks_bytes = {name: worker.peak_rss_bytes for name, worker in self.workers.items()}

    def check(self) -> dict[str, dict[str, float]]:
        """The accuracy of each; nothing where the float32 reference cannot be had."""
        try:
            truth = self._truth()
        except WorkerError as error:
            tell(f"no accuracy, for want of the float32 reference: {error}")
            return {}
        found = {name: self._accuracy(name, truth) for name in list(self.workers)}
        return {name: each for name, each in found.items() if each}

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()
        self.workers.clear()

    def _open(self, entry: Entry) -> None:
        worker = self._start(entry)
        self.workers[entry.name] = worker
        worker.ask({"do": "prepare"}, timeout_s=PREPARE_S)
        if entry.environment != OURS:  # whose memory is to be that of serving alone
            worker.close()
            worker = self.workers[entry.name] = self._start(entry)
        inputs = str(self.work / "inputs.npz")
        loaded = worker.ask({"do": "load", "part": self.part, "inputs": inputs}, timeout_s=LOAD_S)
        self.versions[entry.name] = loaded["versions"]

    def _start(self, entry: Entry) -> Worker:
        ours = entry.environment == OURS
        python = Path(sys.executable) if ours else installed_python(entry.environment, timeout_s=INSTALL_S)
        options = {
            "work": str(self.work),
            "precision": entry.precision,
            "threads": self.threads,
            "rows": ROWS,
            "context": CONTEXT_TOKENS,
            "tile_size": self._tile_size(),
            "extra": entry.extra,
        }
        command = [str(python), "-m", "bench.peers.worker", f"bench.peers.workers.{entry.module}"]
        log = self.work / "logs" / f"{self.part}-{entry.name.replace(' ', '-')}.log"
        environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(self.threads)}
        return Worker([*command, json.dumps(options)], log=log, environment=environment)

    def _accuracy(self, name: str, truth: Mapping[str, Any]) -> dict[str, float]:
        try:
            return accuracy(self._outputs(name, self.workers[name]), truth)
        except WorkerError as error:
            self.fail(name, f"its accuracy could not be had: {error}")
            return {}

    def _tile_size(self) -> int:
        with np.load(self.work / "inputs.npz") as inputs:
            return int(inputs["tiles"].shape[-1])

    def _outputs(self, name: str, worker: Worker) -> Mapping[str, Any]:
        path = self.work / "outputs" / f"{self.part}-{name.replace(' ', '-')}.npz"
        path.parent.mkdir(exist_ok=True)
        worker.ask({"do": "check", "part": self.part, "outputs": str(path)}, timeout_s=CHECK_S)
        with np.load(path) as file:
            return dict(file)

    def _truth(self) -> Mapping[str, Any]:
        """Computed once for a checkpoint, and kept."""
        path = self.work / "outputs" / f"{self.part}-{TRUTH.name}.npz"
        if not path.exists():
            tell("computing the float32 reference")
            worker = self._start(TRUTH)
            try:
                inputs = str(self.work / "inputs.npz")
                worker.ask({"do": "load", "part": self.part, "inputs": inputs}, timeout_s=LOAD_S)
                self._outputs(TRUTH.name, worker)
            finally:
                worker.close()
        with np.load(path) as file:
            return dict(file)


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
