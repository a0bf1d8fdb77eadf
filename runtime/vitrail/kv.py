"""Slots of the KV cache: which are free, and what the free ones still hold.

What a slot holds is known by its keys, one int64 for each cached token (see `prompt_keys`): two prompts with the same
first n keys have the same first n entries of the cache.
"""

from __future__ import annotations

from collections.abc import Iterable
from secrets import token_bytes
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from vitrail.digest import digest

if TYPE_CHECKING:
    from vitrail.core import Float, Int32, Int64

    Keys: TypeAlias = Int64

NOTHING: Keys = np.empty(0, np.int64)
_SECRET = token_bytes(16)  # so that nobody can look for pictures with another's keys


class Move(NamedTuple):
    """The first `tokens` of slot `source` are wanted in slot `target`."""

    source: int
    target: int
    tokens: int


class Seat(NamedTuple):
    """A taken slot, how many of the prompt's first tokens it holds already, and what must be copied before it is used."""

    slot: int
    cached_tokens: int
    move: Move | None = None


class Slots:
    """The rows of a KV cache. A released one keeps what it holds until it is taken again."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free: dict[int, Keys] = dict.fromkeys(range(count), NOTHING)  # least recently released first

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.count - self.free

    @property
    def kept(self) -> dict[int, Keys]:
        """What every free slot holds."""
        return dict(self._free)

    def forget(self) -> None:
        """Of no free slot is it known what it holds."""
        self._free = dict.fromkeys(self._free, NOTHING)

    def take(self, keys: Keys = NOTHING) -> Seat | None:
        """A free slot for a prompt: one that it continues, else an empty one, else the least recently released, but
        of several not the one that holds most of its beginning.

        The latter two are exchanged for a free slot near the taken ones, since a decode step computes every row
        between its first and its last: what that one holds moves to where it is in nobody's way. None when all are
        taken.
        """
        if not self._free:
            return None
        common = {slot: common_prefix(held, keys) for slot, held in self._free.items()}
        continued = [slot for slot, length in common.items() if 0 < length == self._held(slot)]
        if continued:
            slot = max(continued, key=self._held)
            return Seat(slot, reusable(self._free.pop(slot), keys))
        most = max(common.values())
        given_up = min(self._free, key=lambda slot: (self._held(slot) > 0, 0 < most == common[slot]))
        place = self._nearest(given_up)
        if place == given_up:
            return Seat(place, reusable(self._free.pop(place), keys))
        return Seat(place, 0, self._exchange(place, given_up))

    def _nearest(self, given_up: int) -> int:
        """The free slot that widens the span of the taken ones least; an empty one or the one given up if it is one."""
        taken = [slot for slot in range(self.count) if slot not in self._free]

        def cost(slot: int) -> tuple[int, int, int]:
            span = max(*taken, slot) - min(*taken, slot) if taken else 0
            return span, 0 if slot == given_up else self._held(slot), slot

        return min(self._free, key=cost)

    def _exchange(self, place: int, given_up: int) -> Move | None:
        """Take `place` and let `given_up` hold what it holds, as recently released."""
        held = self._free[place]
        del self._free[given_up]
        self._free = {given_up if slot == place else slot: keys for slot, keys in self._free.items()}
        return Move(place, given_up, len(held)) if len(held) else None

    def release(self, slot: int, keys: Keys = NOTHING) -> None:
        """Give a taken slot back, with what it holds. Raises ValueError for one that is not taken."""
        if not 0 <= slot < self.count or slot in self._free:
            raise ValueError(f"slot {slot} of {self.count} is not taken")
        self._free[slot] = keys

    def _held(self, slot: int) -> int:
        return len(self._free[slot])


def common_prefix(a: Keys, b: Keys) -> int:
    """How many first keys are equal."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if different.size else length


def reusable(held: Keys, keys: Keys) -> int:
    """How many tokens of a prompt need no prefill where `held` is cached: its last one always does, for its logits."""
    return max(0, min(common_prefix(held, keys), len(keys) - 1))


def longest_reusable(sources: Iterable[tuple[int, Keys]], keys: Keys) -> Seat:
    """Of (slot, keys that it holds), the one that serves a prompt best."""
    return max(
        (Seat(slot, reusable(held, keys)) for slot, held in sources), key=lambda seat: seat.cached_tokens
    )


def prompt_keys(token_ids: Int32, image_embeds: Float | None, image_context_id: int) -> Keys:
    """A prompt's keys: text tokens by id, image tokens by the content of their tile and their place in it.

    token_ids int32 [P]; image_embeds [tiles, tokens_per_tile, d]. Image keys are negative, ids never are.
    """
    keys = token_ids.astype(np.int64)
    if image_embeds is not None and image_embeds.size:
        tiles = [_tile_key(tile) for tile in image_embeds]
        rows = np.add.outer(np.array(tiles, np.int64), np.arange(image_embeds.shape[1]))
        keys[token_ids == image_context_id] = rows.reshape(-1)
    return keys


def _tile_key(tile: Float) -> int:
    """A negative number far enough below zero for every place of a tile."""
    return -(int.from_bytes(digest(tile, key=_SECRET)[:8], "little") >> 2) - (1 << 32)
