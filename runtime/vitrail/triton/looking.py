"""The direct route's pictures: they wait for the vision models, and neither waiting nor encoding outlasts a deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

from vitrail.core import Uint8
from vitrail.decoder import Decoder, Request
from vitrail.errors import Busy
from vitrail.fair import Claim, FairQueue
from vitrail.look import Seen, look, waited
from vitrail.triton.outbox import Reply, failing

# Tiles [n, 3, S, S] of a request, and the seconds to its deadline, to what the vision models see in them; raises
# VitrailError.
See: TypeAlias = Callable[[Uint8, Request, float], Seen]

SWEEP_INTERVAL_S = 0.1
_WORKERS = 4
# What a tile counts in the queue, whose levels of priority are so many tokens apart.
TOKENS_PER_TILE = 256


@dataclass(slots=True, eq=False)
class Pending:
    """A request whose pictures are not all encoded; `over`: it has ended."""

    request: Request
    tiles: Uint8
    reply: Reply
    arrived_s: float
    over: bool = False

    @property
    def claim(self) -> Claim:
        """On the vision models: its tiles are what it costs."""
        options = self.request.options
        return Claim(options.user, options.priority, len(self.tiles) * TOKENS_PER_TILE)


class Looking:
    """Embeds requests' tiles in the background, `tiles_per_look` at once, and submits them to the decoder.

    Where one tile keeps the vision models busy, pictures are encoded one after another, in the order of the queue.

    Requests that are cancelled or late end where they are, even while the vision models have some of their tiles:
    Triton's queue before these can be long, and keeps to no timeout once it has made up a batch.
    """

    def __init__(self, decoder: Decoder, *, see: See, tiles_per_look: int) -> None:
        self.limit = decoder.settings.queue_limit + decoder.settings.slots
        self._decoder = decoder
        self._see = see
        self._tiles_per_look = tiles_per_look
        self._lock = threading.Lock()  # guards the two, and each one's end
        self._waiting: FairQueue[Pending] = FairQueue()
        self._running: set[Pending] = set()
        self._closed = threading.Event()
        self._pool = ThreadPoolExecutor(min(_WORKERS, tiles_per_look), thread_name_prefix="vision")
        threading.Thread(target=self._keep_sweeping, name="vision-sweep", daemon=True).start()

    @property
    def count(self) -> int:
        """Requests whose pictures are not all encoded."""
        return len(self._waiting) + len(self._running)

    def enter(self, request: Request, tiles: Uint8, reply: Reply, *, arrived_s: float) -> None:
        """Raises Busy when too many wait or are being encoded."""
        with self._lock:
            if len(self._waiting) + len(self._running) >= self.limit:
                raise Busy(
                    f"{self.limit} requests with tiles are waiting, which is the limit; try again later"
                )
            pending = Pending(request, tiles, reply, arrived_s)
            self._waiting.push(pending, pending.claim)
        self._pool.submit(self._work)

    def close(self) -> None:
        """Take no more tiles to the vision models."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _work(self) -> None:
        """Take on the next that waits; the one that this was submitted for may have ended."""
        with self._lock:
            if not self._waiting:
                return
            pending = self._waiting.pop()
            self._running.add(pending)
        try:
            with failing(pending.reply):
                self._look(pending)
        finally:
            with self._lock:
                self._running.discard(pending)

    def _look(self, pending: Pending) -> None:
        pictured = look(
            pending.request,
            pending.tiles,
            see=lambda part, request: self._see(part, request, self._decoder.remaining_s(request)),
            tiles_per_look=self._tiles_per_look,
            since_s=pending.arrived_s,
            dismiss=lambda _: self._has_ended(pending),
        )
        if pictured is None:
            return
        with self._lock:  # from here on, its end is the decoder's
            if self._dismiss(pending):
                return
            self._running.discard(pending)
        self._decoder.submit(pictured, pending.reply.send)

    def _keep_sweeping(self) -> None:
        while not self._closed.wait(SWEEP_INTERVAL_S):
            with self._lock:
                self._waiting.keep(lambda pending: not self._dismiss(pending))
                for pending in self._running:
                    self._dismiss(pending)

    def _has_ended(self, pending: Pending) -> bool:
        with self._lock:
            return self._dismiss(pending)

    def _dismiss(self, pending: Pending) -> bool:
        """The lock is held."""
        request = waited(pending.request, pending.arrived_s)
        pending.over = pending.over or self._decoder.dismiss(request, pending.reply.send)
        return pending.over
