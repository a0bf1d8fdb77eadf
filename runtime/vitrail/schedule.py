"""The policy of continuous batching: what the next forward pass holds. Pure: no session, clock or global."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from vitrail.pace import Pace


class Row(Protocol):
    """What the policy sees of an admitted sequence; it decodes once its whole prompt is cached.

    due: its place among the prompts, the least first; priority: 0 is the most urgent.
    """

    @property
    def slot(self) -> int: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def due(self) -> int: ...
    @property
    def priority(self) -> int: ...


R = TypeVar("R", bound=Row)


@dataclass(frozen=True, slots=True)
class Prefill(Generic[R]):
    """Prompt tokens start .. stop - 1 of one sequence."""

    row: R
    start: int
    stop: int

    @property
    def rows(self) -> tuple[R, ...]:
        return (self.row,)

    @property
    def last(self) -> bool:
        return self.stop == self.row.prompt_tokens

    @property
    def answered(self) -> tuple[R, ...]:
        """The rows that get logits."""
        return self.rows if self.last else ()

    @property
    def new_tokens(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Decode(Generic[R]):
    """One token of every decoding row, by slot. past_lengths covers the span first_slot .. the highest row's slot:
    rows of the span that do not decode are carried along (they write past their end).
    """

    rows: tuple[R, ...]
    first_slot: int
    past_lengths: tuple[int, ...]

    @property
    def answered(self) -> tuple[R, ...]:
        """The rows that get logits."""
        return self.rows

    @property
    def new_tokens(self) -> int:
        return 1

    def split(self) -> tuple[Decode[R], ...]:
        """A batch of its own for every row."""
        return tuple(Decode((row,), row.slot, (row.cached_tokens,)) for row in self.rows)


def next_batch(
    rows: Sequence[R], kept: Mapping[int, int], *, pace: Pace, after_prefill: bool
) -> Prefill[R] | Decode[R] | None:
    """The next forward pass over `rows`, given in order of admission: prefill and decode in turns, but decode alone
    where the pace allows no chunk. kept: how many tokens each free slot still holds.
    """
    prompt, decode = next_prompt(rows), next_decode(rows, kept)
    if prompt is None:
        return decode
    tokens = pace.chunk(writing=delays(prompt, rows))
    if decode is not None and (after_prefill or not tokens):
        return decode
    start = prompt.cached_tokens
    return Prefill(prompt, start, min(start + tokens, prompt.prompt_tokens))


def next_prompt(rows: Sequence[R]) -> R | None:
    """The row whose prompt is due first, of those that are not cached."""
    return min((row for row in rows if not _decodes(row)), key=lambda row: row.due, default=None)


def delays(prompt: R, rows: Sequence[R]) -> bool:
    """Whether reading a prompt delays an answer of another row that is at least as urgent."""
    return any(row is not prompt and _decodes(row) and row.priority <= prompt.priority for row in rows)


def due(begun: int, missing: int, priority: int, *, level: int) -> int:
    """The place of a prompt of `missing` tokens, admitted after `begun` prompt tokens had been read in all.

    A short prompt overtakes a long one, but not one since whose admission more tokens were read than that one has.
    A level of priority is worth `level` tokens.
    """
    return begun + missing + priority * level


def next_decode(rows: Sequence[R], kept: Mapping[int, int]) -> Decode[R] | None:
    """All decoding rows, over the contiguous slots from the lowest to the highest of them."""
    decoding = sorted(filter(_decodes, rows), key=lambda row: row.slot)
    if not decoding:
        return None
    cached = {**kept, **{row.slot: row.cached_tokens for row in rows}}
    span = range(decoding[0].slot, decoding[-1].slot + 1)
    return Decode(tuple(decoding), span.start, tuple(cached[slot] for slot in span))


def _decodes(row: Row) -> bool:
    return row.cached_tokens >= row.prompt_tokens
