"""Medians of actions that take turns, so that what else happens to a machine happens to all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from bench.gpu.plan import reason

Action = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Series:
    """Milliseconds of each round of one action, or why it failed."""

    rounds_ms: tuple[float, ...] = ()
    failure: str | None = None

    @property
    def median_ms(self) -> float | None:
        return median(self.rounds_ms) if self.rounds_ms else None


def interleaved(
    actions: Mapping[str, Action],
    *,
    rounds: int,
    synchronize: Action,
    warm_ups: Mapping[str, Action] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Series]:
    """Every action once to warm up (or what `warm_ups` has for it), then `rounds` times in turns. One that raises is left
    out from then on.
    """
    taken: dict[str, list[float]] = {name: [] for name in actions}
    failures: dict[str, str] = {}
    for turn in [warm_ups or actions, *[actions] * rounds]:
        for name, action in turn.items():
            if name not in failures:
                _once(action, taken[name], failures, name, synchronize, clock)
    return {name: Series(tuple(taken[name][1:]), failures.get(name)) for name in actions}


def _once(
    action: Action,
    taken: list[float],
    failures: dict[str, str],
    name: str,
    synchronize: Action,
    clock: Callable[[], float],
) -> None:
    try:
        synchronize()
        start_s = clock()
        action()
        synchronize()
        taken.append(1e3 * (clock() - start_s))
    except Exception as error:  # noqa: BLE001 - a contestant that fails is a result
        failures[name] = reason(error)
        taken.clear()
