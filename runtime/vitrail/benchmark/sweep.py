"""Stage after stage: warm up, measure, stop where there is no point in going on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice

from vitrail.benchmark.load import MAX_REQUESTS, SETTLE_S, Load, Stage, Tally
from vitrail.benchmark.target import Target
from vitrail.benchmark.workload import Ask, Workload, ask, questions, shapes

Tick = Callable[[str, Tally], None]

# Answers of each stream that is measured alone.
STREAM_ANSWERS = 4


def run_sweep(
    target: Target,
    workload: Workload,
    loads: Sequence[Load],
    *,
    timeout_s: float,
    on_tick: Tick = lambda _title, _tally: None,
) -> list[Tally]:
    """Run every load in turn. Ctrl-C, or a server that only fails, ends the sweep with what there is.

    A warm-up is left out unless it is what ended the sweep; it is then the last tally, its `load.is_warmup` set.
    With streams, each load comes after a tally of the streams alone, and before one of them beside it.
    Raises OptionError for a workload that the target cannot be asked.
    """
    shapes(workload, target.tiling)
    sweep = Sweep(target, workload, timeout_s=timeout_s, on_tick=on_tick)
    done: list[Tally] = []
    for load in loads:
        for tally in sweep.measure(load):
            hopeless = not tally.answered or tally.ending != "complete"
            if hopeless or not tally.load.is_warmup:
                done.append(tally)
            if hopeless:
                return done
    return done


class Sweep:
    """What the stages of a sweep have in common."""

    def __init__(self, target: Target, workload: Workload, *, timeout_s: float, on_tick: Tick) -> None:
        self._target, self._workload = target, workload
        self._timeout_s, self._on_tick = timeout_s, on_tick

    def measure(self, load: Load) -> Iterator[Tally]:
        """The stages of a load, warm-up first."""
        count, name = self._workload.streams, load.title
        for step in load.steps:
            if not count or step.is_warmup:
                yield self._run(self._workload, step)
                continue
            alone = Load(concurrency=count, requests=STREAM_ANSWERS * count, label=f"streams before {name}")
            yield self._run(self._workload.of_streams, alone)
            with self._beside(
                Load(concurrency=count, requests=MAX_REQUESTS, label=f"streams beside {name}")
            ) as beside:
                tally = self._run(self._workload, step)
            yield tally
            yield beside.tally

    @contextmanager
    def _beside(self, load: Load) -> Iterator[Stage]:
        """Run a load of streams while the block runs."""
        stage = self._stage(self._workload.of_streams, load)
        thread = threading.Thread(target=stage.run, name="bench-streams", daemon=True)
        thread.start()
        try:
            yield stage
        finally:
            stage.stop()
            thread.join(SETTLE_S)

    def _run(self, workload: Workload, load: Load) -> Tally:
        stage = self._stage(workload, load)
        self._on_tick(f"{load.title}, drawing pictures", stage.tally)
        try:
            return stage.run(lambda tally: self._on_tick(load.title, tally))
        except KeyboardInterrupt:
            self._on_tick(f"{load.title}, interrupted", stage.tally)
            self._target.close()
            return stage.settle()

    def _stage(self, workload: Workload, load: Load) -> Stage:
        sizes = shapes(workload, self._target.tiling)
        asked = islice(questions(workload, sizes, stage=load.title), load.requests)
        asks = (_timed(ask(question, workload), self._timeout_s) for question in asked)
        return Stage(self._target.asked, asks, load, seed=workload.seed)


def _timed(one: Ask, timeout_s: float) -> Ask:
    return replace(one, options={**one.options, "deadline_s": timeout_s})
