"""When requests set out on the ensemble route: they announce themselves to the decoder, long before they reach it.

Triton tells no model how long a request has waited in its queues, and clocks of two machines need not agree.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

LIMIT = 4096


class Arrivals:
    """Of at most `limit` requests that are on their way, by their ids; of more, the oldest are forgotten."""

    def __init__(self, *, limit: int = LIMIT, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._since_s: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, request_id: str) -> None:
        with self._lock:
            self._since_s[request_id] = self._clock()
            if len(self._since_s) > self._limit:
                self._since_s.popitem(last=False)

    def take_ms(self, request_id: str) -> float:
        """Milliseconds since a request announced itself, 0 where it did not; then it is forgotten."""
        with self._lock:
            since_s = self._since_s.pop(request_id, None)
        return 0.0 if since_s is None else 1000 * (self._clock() - since_s)
