"""The best setting that fits a memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vitrail.plan.memory import Plan, plan_memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vitrail.plan.model import Load, Model, Target

TILE_LIMITS = (13, 8, 4, 2, 1)
LEAST_CONTEXT = 1024
_MOST_SLOTS = 256


@dataclass(frozen=True, slots=True)
class Proposal:
    """A plan that fits, and what it leaves room for: the most slots of its context, the most context of its slots."""

    plan: Plan
    most_slots: int
    most_context_tokens: int


def propose(
    models: Sequence[Model],
    load: Load,
    *,
    target: Target,
    memory_bytes: int,
    tile_limits: Sequence[int] = TILE_LIMITS,
) -> Proposal | None:
    """The first of `models` (best first) that fits `load`, with the most tiles in a run; None where nothing fits.

    Where none fits the load, its context is halved until one does, then its slots.
    """
    for smaller in _shrinking(load):
        for model in models:
            for tiles in tile_limits:
                plan = plan_memory(model, replace(smaller, tiles_per_run=tiles), target=target)
                if plan.total_bytes <= memory_bytes:
                    return Proposal(plan, *_room(plan, memory_bytes))
    return None


def smallest(models: Sequence[Model], load: Load, *, target: Target, tile_limits: Sequence[int]) -> Plan:
    """What `propose` tries last: the model that takes least, one slot, the least context, the fewest tiles."""
    tokens = min(load.context_tokens, LEAST_CONTEXT)
    least = replace(load, slots=1, context_tokens=tokens, tiles_per_run=min(tile_limits))
    return min(
        (plan_memory(model, least, target=target) for model in models), key=lambda plan: plan.total_bytes
    )


def _shrinking(load: Load) -> Iterator[Load]:
    """The load, with ever less context, and then with ever fewer slots."""
    slots = load.slots
    while slots >= 1:
        tokens = load.context_tokens
        while True:
            yield replace(load, slots=slots, context_tokens=tokens)
            if tokens <= LEAST_CONTEXT:
                break
            tokens = max(LEAST_CONTEXT, tokens // 2)
        slots //= 2


def _room(plan: Plan, memory_bytes: int) -> tuple[int, int]:
    def fits(**changed: int) -> bool:
        again = plan_memory(plan.model, replace(plan.load, **changed), target=plan.target)
        return again.total_bytes <= memory_bytes

    slots, context = plan.load.slots, plan.load.context_tokens
    while slots < _MOST_SLOTS and fits(slots=slots + 1):
        slots += 1
    limit = plan.model.decoder.context_tokens
    while context < limit and fits(context_tokens=min(limit, context + 1024)):
        context = min(limit, context + 1024)
    return slots, context
