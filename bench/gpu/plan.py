"""What is measured in which order within a fixed time, and what is left out when it runs short. Pure but for the clock.

Groups are opened in turn; within one, stages run in order. An essential stage runs whenever there is time for it alone;
any other only where what the later groups' essential stages need is left over. Estimates are corrected by the pace so far.
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
    """A measurement of an opened group, and the seconds that it is expected to take."""

    title: str
    seconds: float
    run: Callable[[T], None]
    essential: bool = False


@dataclass(frozen=True, slots=True)
class Group(Generic[T]):
    """Stages that share what `open` makes."""

    title: str
    open_seconds: float
    open: Callable[[], AbstractContextManager[T]]
    stages: tuple[Stage[T], ...]

    @property
    def essential_seconds(self) -> float:
        return self.open_seconds + sum(stage.seconds for stage in self.stages if stage.essential)


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
            reserve_s = sum(later.essential_seconds for later in self._groups[index + 1 :])
            if not self._fits(group.essential_seconds):
                self._leave_out(group.stages, group.title)
                continue
            self._run(group, reserve_s)

    def _run(self, group: Group[T], reserve_s: float) -> None:
        context = group.open()
        opened = self._timed(f"{group.title}: open", group.open_seconds, context.__enter__)
        if opened is None:
            self._leave_out(group.stages, group.title, why="it could not be opened")
            return
        try:
            for stage in group.stages:
                self._stage(group, stage, opened, reserve_s)
        finally:
            self._timed(f"{group.title}: close", 0.0, lambda: context.__exit__(None, None, None))

    def _stage(self, group: Group[T], stage: Stage[T], value: T, reserve_s: float) -> None:
        title = f"{group.title}: {stage.title}"
        if self._fits(stage.seconds + (0.0 if stage.essential else reserve_s)):
            self._timed(title, stage.seconds, lambda: stage.run(value))
        else:
            self._leave_out((stage,), group.title)

    def _fits(self, seconds: float) -> bool:
        return self._clock() + self._pace * seconds <= self._end_s

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
