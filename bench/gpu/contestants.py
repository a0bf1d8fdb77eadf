"""Who is measured: vitrail's sessions and the PyTorch model, behind one protocol. Each takes and returns as it serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from bench.gpu.thread import OneThread

from vitrail.core import Float, Int32, Uint8
from vitrail.sample import Draw
from vitrail.session import DecoderSession, Step, VisionSession

if TYPE_CHECKING:
    from bench.gpu.peer import TorchPeer


class Contestant(Protocol):
    """Everything runs to its end on the device where the caller synchronizes."""

    def see(self, tiles: Uint8) -> object:
        """uint8 tiles [n, 3, S, S] in host memory -> what stands for them in a prompt."""
        ...

    def prefill(self, ids: Int32) -> object:
        """A prompt [P] into an empty cache, to its next token."""
        ...

    def begin(self, ids: Int32, *, rows: int, steps: int) -> None:
        """Cache the prompt [P] in so many rows, and leave room for so many tokens more."""
        ...

    def decode(self, steps: int) -> object:
        """Greedy steps over all rows that were begun."""
        ...


class Vitrail:
    """The sessions of an export, as the engine uses them: embeds go through host memory, and so do the logits where the
    session does not draw tokens itself.
    """

    def __init__(self, vision: VisionSession, decoder: OneThread) -> None:
        self._vision, self._decoder = vision, decoder
        self._tokens: Int32 = np.zeros(0, np.int32)
        self._cached = 0

    def see(self, tiles: Uint8) -> Float:
        return self._vision.see(tiles)

    def prefill(self, ids: Int32) -> int:
        session = self._decoder.session
        step = _step(session.embed(ids)[None], [0], [len(ids) - 1])
        return self._decoder.run(lambda: _greedy(session, step)[0])

    def logits(self, ids: Int32) -> Float:
        """Of the token behind ids [P]: float32 [vocab]."""
        session = self._decoder.session
        step = _step(session.embed(ids)[None], [0], [len(ids) - 1])
        return self._decoder.run(lambda: session.forward(step))[0]

    def begin(self, ids: Int32, *, rows: int, steps: int) -> None:
        decoder = self._decoder
        if rows > decoder.slots or len(ids) + steps > decoder.capacity:
            raise ValueError(f"{rows} rows of {len(ids) + steps} tokens exceed the session's cache")
        first = self.prefill(ids)
        for row in range(1, rows):
            decoder.copy(0, row, len(ids))
        self._tokens, self._cached = np.full(rows, first, np.int32), len(ids)

    def decode(self, steps: int) -> None:
        self._decoder.run(lambda: self._decode(steps))

    def _decode(self, steps: int) -> None:
        session, rows = self._decoder.session, len(self._tokens)
        for _ in range(steps):
            embeds = session.embed(self._tokens)[:, None]
            step = _step(embeds, [self._cached] * rows, list(range(rows)))
            self._tokens = np.array(_greedy(session, step), np.int32)
            self._cached += 1


def _greedy(session: DecoderSession, step: Step) -> list[int]:
    """The most likely token at every wanted position."""
    found = session.sample(step, [Draw()] * len(step.logit_positions))
    return [int(each) if np.ndim(each) == 0 else int(np.argmax(each)) for each in found]


def _step(embeds: Any, past: list[int], wanted: list[int]) -> Step:
    return Step(
        first_slot=0,
        inputs_embeds=embeds,
        past_lengths=np.array(past, np.int32),
        logit_positions=np.array(wanted, np.int64),
    )


class Torch:
    """transformers on the same weights; compiled: its vision and its decode step by torch.compile."""

    def __init__(self, peer: TorchPeer, *, compiled: bool = False) -> None:
        self._peer = peer
        self._see = peer.compiled_see if compiled else peer.see
        self._step = peer.compiled_step if compiled else peer.step
        self._ids: Any = None
        self._cache: Any = None

    def see(self, tiles: Uint8) -> object:
        return self._see(tiles)

    def prefill(self, ids: Int32) -> object:
        return self._peer.prefill(self._peer.embed(ids)[None], self._peer.cache(len(ids)))

    def begin(self, ids: Int32, *, rows: int, steps: int) -> None:
        self._cache = None
        self._cache = self._peer.cache(len(ids) + steps)
        self._ids = self._peer.prefill(self._peer.embed(ids).expand(rows, -1, -1), self._cache)

    def decode(self, steps: int) -> object:
        self._ids = self._peer.decode(self._ids, self._cache, steps=steps, step=self._step)
        return self._ids
