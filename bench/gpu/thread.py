"""A decoder session that one thread runs, whoever calls: CUDA graphs belong to the thread that captured them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from vitrail.core import Float, Int32
from vitrail.sample import Draw
from vitrail.session import DecoderSession, Step

T = TypeVar("T")


class OneThread:
    """A DecoderSession around the one that `open` makes. A call costs a hand-over between threads, some 50 µs;
    `run` hands a whole loop over at once.
    """

    def __init__(self, open: Callable[[], DecoderSession]) -> None:  # noqa: A002 - it is what opens it
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bench-decoder")
        self.session = self.run(open)
        self.slots, self.capacity = self.session.slots, self.session.capacity
        self.reads_as_written = self.session.reads_as_written

    def run(self, action: Callable[[], T]) -> T:
        return self._thread.submit(action).result()

    def embed(self, token_ids: Int32) -> Float:
        return self.session.embed(token_ids)

    def copy(self, source: int, target: int, tokens: int) -> None:
        self.run(lambda: self.session.copy(source, target, tokens))

    def forward(self, step: Step) -> Float:
        return self.run(lambda: self.session.forward(step))

    def sample(self, step: Step, draws: Sequence[Draw | None]) -> Sequence[int | Float]:
        return self.run(lambda: self.session.sample(step, draws))

    def close(self) -> None:
        """Let go of the session in its own thread, and end that."""
        self.run(lambda: delattr(self, "session"))
        self._thread.shutdown()
