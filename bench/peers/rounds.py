"""Who is measured when, and what the samples of one run say. Pure but for what it calls.

Contestants take turns, every other round backwards: what else happens to a machine happens to all of them, and a
steady drift cancels out of the ratios, which are made within a round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.peers.process import WorkerError


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds of one action, and what the machine could do just before: bf16 products and reading memory.
    others_cpu_share: processor time of all idle contestants meanwhile, over `seconds`.
    """

    seconds: float
    matrix_tflop_s: float
    read_gb_s: float
    others_cpu_share: float = 0.0


@dataclass(slots=True)
class Turns:
    """Samples of each contestant, by round; contestants that failed have a reason and no samples."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def seconds(self, name: str) -> list[float]:
        return [each.seconds for each in self.samples.get(name, [])]


def take_turns(
    contestants: Sequence[str],
    *,
    rounds: int,
    warm_up: Callable[[str], object],
    sample: Callable[[str], Sample],
) -> Turns:
    """Every contestant once to warm up, then `rounds` times in turns. One that raises WorkerError is out from then on."""
    turns = Turns({name: [] for name in contestants})
    for name in contestants:
        _attempt(name, warm_up, turns)
    for number in range(rounds):
        for name in contestants if number % 2 == 0 else contestants[::-1]:
            if name not in turns.failures and (found := _attempt(name, sample, turns)) is not None:
                turns.samples[name].append(found)
    return turns


def _attempt(name: str, action: Callable[[str], object], turns: Turns) -> object:
    try:
        return action(name)
    except WorkerError as error:
        turns.failures[name] = str(error)
        turns.samples[name] = []
        return None


def merged(
    rows: Sequence[Mapping[str, object]], new: Sequence[Mapping[str, object]]
) -> list[Mapping[str, object]]:
    """A card's rows with those of a new run: stages that were measured again lose all their old rows, since ratios
    belong to one run.
    """
    again = {row["what"] for row in new}
    return [*(row for row in rows if row["what"] not in again), *new]
