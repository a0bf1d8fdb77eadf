"""A fair queue: users take turns by the tokens that they ask for, urgent requests come first, nobody starves. Pure.

Start-time fair queueing (Goyal, Vin, Cheng: SIGCOMM 1996). Every request of a user begins where the user's last one
ends, on a scale of tokens, or at the present of that scale; the earliest beginning is served. A level of priority is a
handicap on the same scale: more urgent requests overtake, but only so many tokens' worth of them.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MOST_URGENT, LEAST_URGENT = 0, 9
# By so many tokens of one user's urgent requests may a request of the next level be overtaken.
LEVEL_TOKENS = 16_384
# The present moves by this share of what is served at least, so that no stream of new users holds back an old request.
_DRIFT = 1 / 64

T = TypeVar("T")


class Claim(NamedTuple):
    """Whose a request is, how urgent (0 most), and the tokens that it may cost."""

    user: str = ""
    priority: int = 5
    tokens: int = 1


@dataclass(order=True, slots=True)
class _Entry(Generic[T]):
    """Ordered by its place on the scale, then by arrival."""

    place: float
    number: int
    begin: float = field(compare=False)
    claim: Claim = field(compare=False)
    item: T = field(compare=False)


class FairQueue(Generic[T]):
    """Who waits, in the order in which they will be served. Of one user and priority, first come is first served."""

    def __init__(self) -> None:
        self._entries: list[_Entry[T]] = []
        self._ends: dict[
            tuple[str, int], float
        ] = {}  # where each user's next request of a priority may begin
        self._present = 0.0
        self._count = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[T]:
        return (entry.item for entry in self._entries)

    def push(self, item: T, claim: Claim = Claim()) -> None:  # noqa: B008 (immutable)
        flow = (claim.user, claim.priority)
        begin = max(self._present, self._ends.get(flow, 0.0))
        self._ends[flow] = begin + claim.tokens
        self._count += 1
        insort(self._entries, _Entry(begin + claim.priority * LEVEL_TOKENS, self._count, begin, claim, item))

    def head(self) -> T | None:
        """Who is next."""
        return self._entries[0].item if self._entries else None

    def pop(self) -> T:
        """Serve the next. Raises IndexError where nobody waits."""
        entry = self._entries.pop(0)
        self._present = max(self._present, entry.begin) + entry.claim.tokens * _DRIFT
        self._ends = {flow: end for flow, end in self._ends.items() if end > self._present}
        return entry.item

    def keep(self, wanted: Callable[[T], bool]) -> None:
        """Drop everybody else. What they would have used is still counted as their users', until nobody waits."""
        self._entries = [entry for entry in self._entries if wanted(entry.item)]
        if not self._entries:
            self._ends.clear()

    def crowd(self, newcomer: Claim, count: int = 1) -> T | None:
        """Who gives way where there is no room for `count` newcomers: the latest arrival of the least urgent level,
        there of the user who has most waiting, if that level is less urgent than the newcomers', or the same and that
        user has more waiting than the newcomers' would have. None: the newcomers themselves.
        """
        waiting = Counter(entry.claim.user for entry in self._entries)
        found = max(
            self._entries,
            key=lambda entry: (entry.claim.priority, waiting[entry.claim.user], entry.number),
            default=None,
        )
        if found is None or found.claim.priority < newcomer.priority:
            return None
        crowded = waiting[found.claim.user] > waiting[newcomer.user] + count
        return found.item if crowded or found.claim.priority > newcomer.priority else None
