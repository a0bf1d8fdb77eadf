"""One loop for every stage: resume, learn for some seconds, report, save."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from demo.recipe import together
from demo.recipe.muon import set_rate
from demo.recipe.state import Log, load, parts_of, save

WARMUP_STEPS, REPORT_STEPS, SAVE_SECONDS = 40, 25, 120
LAST_RATE = 0.02
# A step that takes longer was paused: no more of it counts.
LONGEST_STEP_S = 20.0


@dataclass(frozen=True, slots=True)
class Lesson:
    """A part of one step: its loss, what to report of it, and how many samples it saw."""

    loss: Tensor
    figures: Mapping[str, float]
    samples: int


@dataclass(frozen=True, slots=True)
class Stage:
    """A model that learns from the parts of `lesson(rng, step)` and is kept in `<directory>/<name>.pt` and `.jsonl`."""

    name: str
    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    lesson: Callable[[random.Random, int], Iterable[Lesson]]


def run(
    stage: Stage,
    directory: Path,
    *,
    seconds: float,
    cooling_s: float = 0.0,
    seed: int = 0,
    rate: float = 1.0,
    is_stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Go on where the last run stopped, at a share `rate` of the stage's learning rates.

    Learns for `seconds`, pauses left out; in the last `cooling_s` of them the rates fall to almost nothing. Ends early,
    and saves, where `is_stopped`.
    """
    path, log = directory / f"{stage.name}.pt", Log(directory / f"{stage.name}.jsonl")
    step, samples = resume(stage, path)
    rng = random.Random(f"{stage.name} {seed} {step} {together.RANK}")  # noqa: S311
    left, now, saved = seconds, time.monotonic(), time.monotonic()
    warm_from, sums, ended = step, defaultdict(list), 0.0
    while ended == 0.0:
        for part in stage.lesson(rng, step):
            part.loss.backward()
            samples += together.SIZE * part.samples  # the others draw about as many
            for name, figure in part.figures.items():
                sums[name].append(figure)
        before, now = now, time.monotonic()
        left -= min(now - before, LONGEST_STEP_S)
        cooled = max(LAST_RATE, min(1.0, left / cooling_s)) if cooling_s else 1.0
        share = rate * min(1.0, (step + 1 - warm_from) / WARMUP_STEPS, cooled)
        share, ended = together.mean(list(stage.model.parameters()), [share, float(left < 0 or is_stopped())])
        set_rate(stage.optimizers, share)
        step_all(stage.optimizers)
        step += 1
        if together.RANK:
            continue
        if step % REPORT_STEPS == 0:
            log.report(
                step=step, samples=samples, **{name: sum(of) / len(of) for name, of in sorted(sums.items())}
            )
            sums.clear()
        if ended or time.monotonic() - saved > SAVE_SECONDS:
            save(path, step=step, samples=samples, **parts_of(stage.model, stage.optimizers))
            saved = time.monotonic()


def step_all(optimizers: list[torch.optim.Optimizer]) -> None:
    for each in optimizers:
        each.step()
        each.zero_grad(set_to_none=True)


def resume(stage: Stage, path: Path) -> tuple[int, int]:
    """Load what was saved, if anything; (steps, samples) so far."""
    before = load(path)
    if not before:
        return 0, 0
    stage.model.load_state_dict(before["model"])
    for each, kept in zip(stage.optimizers, before["optimizers"], strict=True):
        each.load_state_dict(kept)
    return before["step"], before.get("samples", 0)
