"""Who is measured: vitrail's sessions and the PyTorch model, behind one protocol. Each takes and returns as it serves."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from bench.gpu.peer import TorchPeer

from vitrail.core import Int32, Uint8
from vitrail.session import DecoderSession, Step, VisionSession


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
    """The sessions of an export, as the engine uses them: embeds and logits go through host memory."""

    def __init__(self, vision: VisionSession, decoder: DecoderSession, *, chunk: int) -> None:
        self.vision, self.decoder, self._chunk = vision, decoder, chunk
        self._tokens: Int32 = np.zeros(0, np.int32)
        self._cached = 0

    def see(self, tiles: Uint8) -> object:
        return self.vision.project(self.vision.encode(tiles))

    def prefill(self, ids: Int32) -> int:
        embeds = self.decoder.embed(ids)
        logits = np.empty((0, 0), np.float32)
        for start in range(0, len(ids), self._chunk):
            part = embeds[None, start : start + self._chunk]
            wanted = [part.shape[1] - 1] if start + self._chunk >= len(ids) else []
            logits = self.decoder.forward(_step(part, [start], wanted))
        return int(logits[0].argmax())

    def begin(self, ids: Int32, *, rows: int, steps: int) -> None:
        if rows > self.decoder.slots or len(ids) + steps > self.decoder.capacity:
            raise ValueError(f"{rows} rows of {len(ids) + steps} tokens exceed the session's cache")
        first = self.prefill(ids)
        for row in range(1, rows):
            self.decoder.copy(0, row, len(ids))
        self._tokens, self._cached = np.full(rows, first, np.int32), len(ids)

    def decode(self, steps: int) -> None:
        rows = len(self._tokens)
        for _ in range(steps):
            embeds = self.decoder.embed(self._tokens)[:, None]
            logits = self.decoder.forward(_step(embeds, [self._cached] * rows, list(range(rows))))
            self._tokens = logits.argmax(1).astype(np.int32)
            self._cached += 1


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
        self._see, self._step = (peer.compiled_see, peer.compiled_step) if compiled else (peer.see, peer.step)
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
        with torch.inference_mode():
            for _ in range(steps):
                self._ids = self._step(self._ids, self._cache).clone()
        return self._ids

    def end(self) -> None:
        """Give the cache back."""
        self._ids = self._cache = None
