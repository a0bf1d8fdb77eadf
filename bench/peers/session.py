"""A contest over one part of the model: who is in is opened, and every stage is measured in turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.peers.card import Card
from bench.peers.contest import Entry, Part, Stage
from bench.peers.contestants import Ring, tell
from bench.peers.probe import Probe
from bench.peers.rounds import Sample, take_turns

Request = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """timeout_s: of one action of one contestant; check: whether accuracy is compared with float32."""

    work: Path
    card: Card
    probe: Probe
    threads: int
    rounds: int
    timeout_s: float
    check: bool

    def run(self, part: Part, stages: Sequence[Stage], entries: Sequence[Entry]) -> None:
        ring = Ring(part, self.work, self.threads)
        try:
            ring.enter(entries)
            for stage in stages:
                self._measure(ring, stage, entries)
            ring.note_peaks()
            self.card.note(ring, entries, ring.check() if self.check else {})
        finally:
            ring.close()

    def _measure(self, ring: Ring, stage: Stage, entries: Sequence[Entry]) -> None:
        tell(stage.what)
        request: Request = stage.request(rounds=self.rounds)
        turns = take_turns(
            [entry.name for entry in entries if entry.name in ring.workers],
            rounds=self.rounds,
            warm_up=partial(self._begin, ring, request),
            sample=partial(self._sample, ring, request),
        )
        for name, reason in turns.failures.items():
            ring.fail(name, f"{stage.what}: {reason}")
        self.card.add(stage, entries, turns)

    def _begin(self, ring: Ring, request: Request, name: str) -> None:
        worker = ring.workers[name]
        worker.ask({"do": "begin", **request}, timeout_s=self.timeout_s)
        worker.ask({"do": "measure", **request}, timeout_s=self.timeout_s)

    def _sample(self, ring: Ring, request: Request, name: str) -> Sample:
        """What the machine can do, then the measured action; and what all others used of the processor meanwhile."""
        matrix_tflop_s, read_gb_s = self.probe()
        others = [worker for other, worker in ring.workers.items() if other != name]
        before_s = sum(worker.cpu_s for worker in others)
        answer = ring.workers[name].ask({"do": "measure", **request}, timeout_s=self.timeout_s)
        seconds = answer["seconds"]
        others_s = sum(worker.cpu_s for worker in others) - before_s
        return Sample(seconds, matrix_tflop_s, read_gb_s, others_s / seconds)
