"""What is measured in which order within a fixed time, and what is left out when it runs short. Pure but for the clock.

Groups are opened in turn; within one, stages run in order. A stage runs where it leaves time for every stage of a lower
rank in later groups: rank 0 needs time for itself alone. Estimates are corrected by the pace so far.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Stage(Generic[T]):
    """A measurement of an opened group, and the seconds that it is expected to take. The lowest rank is wanted most."""

    title: str
    seconds: float
    run: Callable[[T], None]
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Group(Generic[T]):
    """Stages, one or more, that share what `open` makes."""

    title: str
    open_seconds: float
    open: Callable[[], AbstractContextManager[T]]
    stages: tuple[Stage[T], ...]

    def seconds_below(self, rank: int) -> float:
        """For its stages of a lower rank; opening counts where there are any."""
        found = [stage.seconds for stage in self.stages if stage.rank < rank]
        return self.open_seconds + sum(found) if found else 0.0


class Outcome(NamedTuple):
    """How a stage, or the opening of a group, went: its seconds, or why there are no figures."""

    title: str
    seconds: float = 0.0
    left_out: str | None = None
    failure: str | None = None


class Run(Generic[T]):
    """Runs groups within `budget_s` seconds; on_outcome is called after every stage."""

    def __init__(
        self,
        groups: Sequence[Group[T]],
        *,
        budget_s: float,
        on_outcome: Callable[[Outcome], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._groups = groups
        self._on_outcome = on_outcome
        self._clock = clock
        self._end_s = clock() + budget_s
        self._expected_s = self._taken_s = 0.0

    def __call__(self) -> None:
        for index, group in enumerate(self._groups):
            later, first = self._groups[index + 1 :], group.stages[0]
            if self._fits(group.open_seconds + first.seconds, first.rank, later):
                self._run(group, later)
            else:
                self._leave_out(group.stages, group.title)

    def _run(self, group: Group[T], later: Sequence[Group[T]]) -> None:
        context = group.open()
        opened = self._timed(f"{group.title}: open", group.open_seconds, context.__enter__)
        if opened is None:
            self._leave_out(group.stages, group.title, why="it could not be opened")
            return
        try:
            for stage in group.stages:
                self._stage(group, stage, opened, later)
        finally:
            self._timed(f"{group.title}: close", 0.0, lambda: context.__exit__(None, None, None))

    def _stage(self, group: Group[T], stage: Stage[T], value: T, later: Sequence[Group[T]]) -> None:
        if self._fits(stage.seconds, stage.rank, later):
            self._timed(f"{group.title}: {stage.title}", stage.seconds, lambda: stage.run(value))
        else:
            self._leave_out((stage,), group.title)

    def _fits(self, seconds: float, rank: int, later: Sequence[Group[T]]) -> bool:
        reserve_s = sum(group.seconds_below(rank) for group in later)
        return self._clock() + self._pace * (seconds + reserve_s) <= self._end_s

    @property
    def _pace(self) -> float:
        """Taken over expected seconds so far, once that says something."""
        return max(0.5, self._taken_s / self._expected_s) if self._expected_s > 10 else 1.0

    def _timed(self, title: str, expected_s: float, action: Callable[[], R]) -> R | None:
        """The action's result; None where it fails."""
        start_s = self._clock()
        failure: str | None = None
        result: R | None = None
        try:
            result = action()
        except Exception as error:  # noqa: BLE001 - one figure that cannot be had costs no other
            failure = reason(error)
        seconds = self._clock() - start_s
        self._taken_s, self._expected_s = self._taken_s + seconds, self._expected_s + expected_s
        self._on_outcome(Outcome(title, round(seconds, 1), failure=failure))
        return result

    def _leave_out(self, stages: Sequence[Stage[T]], group: str, why: str = "no time was left") -> None:
        for stage in stages:
            self._on_outcome(Outcome(f"{group}: {stage.title}", left_out=why))


def reason(error: Exception) -> str:
    """An error's kind and first line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
