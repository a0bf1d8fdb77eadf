"""Sessions and a tokenizer without a model, for tests: deterministic, and wrong where slots or lengths are mixed up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitrail.core import Text, Visual
from vitrail.session import InSteps, OnHost

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vitrail.core import Float, Int32, Segment, Uint8
    from vitrail.session import Step

IMAGE_CONTEXT_ID = 299
STOP_ID = 298


class FakeDecoder(OnHost):
    """A DecoderSession whose logits depend on every cached embedding of their row and on its position.

    What was never written is NaN, and so are the logits that read it.
    """

    def __init__(self, *, slots: int = 4, capacity: int = 64, width: int = 8, vocab: int = 300) -> None:
        random = np.random.default_rng(0)
        self.slots, self.capacity = slots, capacity
        self.table = random.normal(size=(vocab, width)).astype(np.float32)
        self.head = random.normal(size=(width, vocab)).astype(np.float32)
        self.cache = np.full((slots, capacity, width), np.nan, np.float32)
        self.steps: list[Step] = []

    def embed(self, token_ids: Int32) -> Float:
        embeds: Float = self.table[token_ids]
        return embeds

    def copy(self, source: int, target: int, tokens: int) -> None:
        self.cache[target, :tokens] = self.cache[source, :tokens]

    def forward(self, step: Step) -> Float:
        self.steps.append(step)
        new = step.inputs_embeds.shape[1]
        for row, past in enumerate(step.past_lengths):
            if past + new > self.capacity:
                raise IndexError(f"{past} cached and {new} new tokens in a slot of {self.capacity}")
            self.cache[step.first_slot + row, past : past + new] = step.inputs_embeds[row, :new]
        places = [divmod(int(place), step.inputs_embeds.shape[1]) for place in step.logit_positions]
        logits = [
            self._logits(step.first_slot + row, int(step.past_lengths[row]) + place) for row, place in places
        ]
        return np.array(logits, np.float32).reshape(len(logits), self.head.shape[1])

    def _logits(self, slot: int, position: int) -> Float:
        angles = np.arange(position + 1)[:, None] * 0.7 + np.arange(self.table.shape[1])
        state = (self.cache[slot, : position + 1] * np.cos(angles)).sum(0)
        logits: Float = np.sin(3 * state) @ self.head
        return logits


class FakeVision(InSteps):
    """A VisionSession whose embeds depend on every tile's pixels and on the place in the tile."""

    def __init__(self, *, tokens_per_tile: int = 2, width: int = 8) -> None:
        self.tokens_per_tile, self.width = tokens_per_tile, width

    def encode(self, tiles: Uint8) -> Float:
        means: Float = tiles.reshape(len(tiles), -1).mean(1)
        return means[:, None, None] + np.arange(self.tokens_per_tile)[None, :, None]

    def project(self, features: Float) -> Float:
        embeds: Float = np.sin(features * np.arange(1, self.width + 1)).astype(np.float32)
        return embeds


class ByteTokenizer:
    """A Tokenizer with one id for each UTF-8 byte; ids from 256 on are special tokens, spelled `<256>`."""

    def encode(self, segments: Sequence[Segment], tokens_per_tile: int) -> Int32:
        pieces = [self._ids(segment, tokens_per_tile) for segment in segments]
        return np.concatenate([np.empty(0, np.int32), *pieces])

    def encode_text(self, text: str, *, parse_special: bool) -> Int32:
        del parse_special
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, ids: Iterable[int], *, keep_special: bool) -> str:
        pieces = (bytes([i]) if i < 256 else f"<{i}>".encode() * keep_special for i in ids)
        return b"".join(pieces).decode(errors="replace")

    def _ids(self, segment: Segment, tokens_per_tile: int) -> Int32:
        if isinstance(segment, Visual):
            return np.full(segment.tiles * tokens_per_tile, IMAGE_CONTEXT_ID, np.int32)
        text = segment.text if isinstance(segment, Text) else ""
        return self.encode_text(text, parse_special=False)
