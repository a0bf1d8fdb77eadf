"""What a decoder is told: how much it takes on, and what prompts may cost the answers that are being written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real

from vitrail.errors import OptionError
from vitrail.options import MAX_DEADLINE_S
from vitrail.pace import LEAST_SLOWDOWN, Pace

DEFAULT_CONTEXT_TOKENS = 8192
_WHOLE = ("slots", "context_tokens", "prefill_chunk", "queue_limit")
_MAY_BE_NONE = ("context_tokens", "tpot_target_ms")


@dataclass(frozen=True)
class Settings:
    """How much a decoder takes on. Raises OptionError for a value outside its range.

    slots: answers decoded at once; context_tokens: what each slot caches (None: the export's limit, at most 8192);
    prefill_chunk: most prompt tokens of one step; queue_limit: answers that may wait; default_deadline_s: for requests
    that name none; prefix_cache: whether the beginning of a prompt that is still cached is used again.
    tpot_slowdown: how many times longer answers may take per token, on average, while prompts are read (infinity: no
    bound), or tpot_target_ms, milliseconds per token, instead.
    """

    slots: int = 4
    context_tokens: int | None = None
    prefill_chunk: int = 512
    queue_limit: int = 64
    default_deadline_s: float = 600.0
    prefix_cache: bool = True
    tpot_slowdown: float = 1.75
    tpot_target_ms: float | None = None

    def __post_init__(self) -> None:
        ranges: dict[str, tuple[float, float]] = {
            "slots": (1, math.inf),
            "context_tokens": (3, math.inf),
            "prefill_chunk": (1, math.inf),
            "queue_limit": (0, math.inf),
            "default_deadline_s": (0, MAX_DEADLINE_S),
            "tpot_slowdown": (LEAST_SLOWDOWN, math.inf),
            "tpot_target_ms": (0, math.inf),
        }
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if value is None and name in _MAY_BE_NONE:
                continue
            _require_kind(name, value, Integral if name in _WHOLE else Real)
            if not value >= least:
                raise OptionError(f"{name} is {value}; it must be at least {least}")
            if not value <= most:
                raise OptionError(f"{name} is {value}; it must be at most {most}")
        if self.default_deadline_s == 0:
            raise OptionError("default_deadline_s is 0, which ends every request at once; give more seconds")
        if self.tpot_target_ms == 0:
            raise OptionError(
                "tpot_target_ms is 0, which no machine reaches; give more milliseconds, or leave it out"
            )
        if not isinstance(self.prefix_cache, bool):
            raise OptionError(f"prefix_cache is {self.prefix_cache!r}; it must be True or False")

    @property
    def pace(self) -> Pace:
        """A new one."""
        target_s = None if self.tpot_target_ms is None else self.tpot_target_ms / 1000
        return Pace(largest_chunk=self.prefill_chunk, slowdown=self.tpot_slowdown, tpot_target_s=target_s)

    def capacity(self, export_limit: int) -> int:
        """Tokens that one slot caches. Raises OptionError beyond what the export was made for."""
        wanted = self.context_tokens
        if wanted is not None and wanted > export_limit:
            raise OptionError(
                f"context_tokens is {wanted}, but this export reaches {export_limit}; lower it to that"
            )
        return min(export_limit, DEFAULT_CONTEXT_TOKENS) if wanted is None else wanted


def require_whole(**settings: object) -> None:
    """Raise OptionError, with its name, for one that is no integer."""
    for name, value in settings.items():
        _require_kind(name, value, Integral)


def _require_kind(name: str, value: object, kind: type[Integral | Real]) -> None:
    if isinstance(value, bool) or not isinstance(value, kind):
        wanted = "an integer" if kind is Integral else "a number"
        raise OptionError(f"{name} is {value!r}; it must be {wanted}")
