"""What is measured of a model, most wanted first, with the seconds that each stage is expected to take.

The seconds are arithmetic for one H100 and a model of 2 billion weights; they have not been compared with a GPU yet, and
a run corrects them by its pace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from bench.gpu.bed import REQUESTS_AT_ONCE, Bed, Bench, open_bed
from bench.gpu.models import Sizes, Subject
from bench.gpu.plan import Group, Stage

# Ranks: what a goal is about, every other figure of vitrail (beside it PyTorch's), what PyTorch alone does.
GOAL, FIGURE, PEER = range(3)
OPEN_S, COMPILE_S = 15.0, 60.0
LARGE, LARGE_OPEN = 1.8, 2.0  # how much longer the 8B takes


class Kind(NamedTuple):
    """A measurement at several sizes: expected seconds of vitrail, and of the peer beside it; how many are about goals."""

    title: str
    measure: Callable[[Bed, Any], None]
    values: Sequence[Any]
    seconds: float
    peer_seconds: float
    goals: int = 0


def groups_of(
    subjects: Sequence[Subject], bench: Bench, *, compiled: bool, done: Callable[[str], bool]
) -> list[Group[Bed]]:
    """A group for each subject that has stages left. The first of a model has the peer beside it, which is the same for
    all of our precisions, and measures vision, which is the same in all of them.
    """
    names = [subject.name for subject in subjects]
    firsts = [names.index(subject.name) == at for at, subject in enumerate(subjects)]
    groups = [
        _group(subject, bench, first=first, compiled=compiled, done=done)
        for subject, first in zip(subjects, firsts, strict=True)
    ]
    return [group for group in groups if group.stages]


def _group(
    subject: Subject, bench: Bench, *, first: bool, compiled: bool, done: Callable[[str], bool]
) -> Group[Bed]:
    large, large_open = (LARGE, LARGE_OPEN) if "8b" in subject.name else (1.0, 1.0)
    found = [*_stages(bench.sizes, large, first=first)]
    found += _peer_stages(bench.sizes, large, compiled=compiled and bench.device.is_gpu) if first else ()
    left = [stage for stage in found if not done(f"{subject.title}: {stage.title}")]
    return Group(
        subject.title,
        open_seconds=OPEN_S * large_open,
        open=partial(open_bed, subject, bench, with_peer=first),
        stages=tuple(sorted(left, key=lambda stage: stage.rank)),
    )


def _stages(sizes: Sizes, large: float, *, first: bool) -> Iterator[Stage[Bed]]:
    for kind in _kinds(sizes):
        if kind.measure is Bed.vision and not first:
            continue
        for at, value in enumerate(kind.values):
            seconds = _answer_seconds(*value) if kind.measure is Bed.answers else kind.seconds
            seconds = large * (seconds + first * kind.peer_seconds)
            rank = GOAL if at < kind.goals else FIGURE
            yield Stage(f"{kind.title} {value}", seconds, partial(_measure, kind.measure, value), rank)


def _kinds(sizes: Sizes) -> Iterator[Kind]:
    busiest, *between = sizes.concurrency[:-1] or (1,)
    answers = {many: [(tiles, many) for tiles in sizes.picture_tiles] for many in (1, busiest, *between)}
    yield Kind("parity", Bed.parity, (64,), 1, 1, goals=1)
    yield Kind("vision", Bed.vision, sizes.tiles, 2, 1, goals=1)
    yield Kind("decode", Bed.decode, sizes.batches, 2, 3, goals=1)
    yield Kind("answers", Bed.answers, answers.pop(1), 0, 1, goals=1)
    yield Kind("answers", Bed.answers, answers.pop(busiest, ()), 0, 0, goals=len(sizes.picture_tiles))
    yield Kind("prefill", Bed.prefill, sizes.prefill, 1.5, 1)
    for each in answers.values():
        yield Kind("answers", Bed.answers, each, 0, 0)


def _answer_seconds(tiles: int, concurrency: int) -> float:
    """Of so many requests and their warm-up: about 11 pictures of 13 tiles a second."""
    return 1.5 + (REQUESTS_AT_ONCE + 0.5) * concurrency * (0.01 + 0.006 * tiles)


def _peer_stages(sizes: Sizes, large: float, *, compiled: bool) -> Iterator[Stage[Bed]]:
    for each in zip(sizes.picture_tiles, sizes.peer_batches, strict=True):
        yield Stage(f"answers of torch {each}", 7 * large, partial(_measure, Bed.peer_answers, each), PEER)
    if compiled:
        yield Stage("torch compiled", COMPILE_S, Bed.compiled, PEER)


def _measure(measure: Callable[[Bed, Any], None], value: Any, bed: Bed) -> None:
    measure(bed, value)
