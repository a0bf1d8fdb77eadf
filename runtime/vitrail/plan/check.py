"""Refuse what cannot fit before anything is loaded."""

from __future__ import annotations

import logging

from vitrail.errors import OptionError
from vitrail.plan.machine import OVERRIDE, memory_limit_bytes
from vitrail.plan.memory import Plan
from vitrail.plan.model import Load
from vitrail.plan.size import show_size

MARGIN = 0.1
"""How far a plan may be off: it is refused beyond that only."""

log = logging.getLogger(__name__)


def check_memory(plan: Plan, *, limit_bytes: int | None = None) -> None:
    """Raise OptionError, with the figures and the cure, where the host's part of `plan` exceeds the machine by more than
    MARGIN; warn where it exceeds it at all.

    limit_bytes: the machine's memory; read where it is not given.
    """
    limit = memory_limit_bytes() if limit_bytes is None else limit_bytes
    needed = plan.host_bytes
    if limit is None or needed <= limit:
        return
    told = f"{plan.model.name} would take {show_size(needed)} ({_parts(plan)}), this machine has {show_size(limit)}"
    if needed <= limit * (1 + MARGIN):
        log.warning("%s: it may run out when every slot is full", told)
        return
    raise OptionError(f"{told}; {_cure(plan, limit)}. {OVERRIDE}=off loads it all the same")


def _parts(plan: Plan) -> str:
    sizes = {kind: size for kind, size in plan.by_kind.items() if size}
    return ", ".join(f"{kind} {show_size(size)}" for kind, size in sizes.items())


def _cure(plan: Plan, limit: int) -> str:
    """Fewer cached tokens where they are what does not fit, else a smaller model."""
    load, per_token = plan.load, plan.model.decoder.kv_bytes_per_token
    rest = plan.host_bytes - load.slots * load.context_tokens * per_token
    tokens = (limit - rest) // per_token
    if plan.target == "cpu" and tokens >= 1024:
        return f"lower slots x context from {load.slots} x {load.context_tokens} to {tokens} tokens in all: {_setting(load, tokens)}"
    return "export with --precision int4, lower the tiles of one run, or take a machine with more memory"


def _setting(load: Load, tokens: int) -> str:
    slots = max(1, min(load.slots, tokens // 2048))
    return f"--slots {slots} --context {min(load.context_tokens, tokens // slots)}, for one"
