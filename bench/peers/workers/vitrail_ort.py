"""vitrail as a server runs it: the sessions that `Engine.load` opens, prompts in chunks of the server's default size."""

from __future__ import annotations

from typing import Any

import numpy as np
from bench.peers.worker import Options

from vitrail.core import Float, Int32, Uint8
from vitrail.decoder import Settings
from vitrail.machine import share_threads
from vitrail.manifest import load_manifest
from vitrail.providers import parse_provider
from vitrail.sample import Draw
from vitrail.session import DecoderSession, Step, VisionSession
from vitrail.session.open import open_decoder, open_vision


class Contestant:
    packages = ("vitrail", "onnxruntime")

    def __init__(self, options: Options) -> None:
        self._options = options
        self._directory = options.work / options.extra["artifacts"]
        self._vision: VisionSession
        self._decoder: DecoderSession
        self._tokens: Int32 = np.zeros(0, np.int32)
        self._cached = 0

    def prepare(self) -> None:
        """The driver exports: it has everything that this takes."""

    def load(self, part: str) -> None:
        options, manifest = self._options, load_manifest(self._directory)
        shares = share_threads(parse_provider(options.extra.get("provider", "cpu")), options.threads)
        if part == "vision":
            self._vision = open_vision(self._directory, manifest, shares.vision)
        else:
            self._decoder = open_decoder(
                self._directory, manifest, shares.decoder, slots=options.rows, capacity=options.context
            )

    def see(self, tiles: Uint8) -> Float:
        return self._vision.see(tiles)

    def first(self, ids: Int32) -> int:
        return _greedy(self._decoder, self._read(ids))[0]

    def logits(self, ids: Int32) -> Float:
        found: Float = self._decoder.forward(self._read(ids))[0]
        return found

    def begin(self, ids: Int32, *, rows: int, steps: int) -> None:
        if rows > self._decoder.slots or len(ids) + steps > self._decoder.capacity:
            raise ValueError(f"{rows} rows of {len(ids) + steps} tokens exceed the session's cache")
        first = self.first(ids)
        for row in range(1, rows):
            self._decoder.copy(0, row, len(ids))
        self._tokens, self._cached = np.full(rows, first, np.int32), len(ids)

    def decode(self, steps: int) -> None:
        rows = len(self._tokens)
        for _ in range(steps):
            embeds = self._decoder.embed(self._tokens)[:, None]
            step = _step(embeds, [self._cached] * rows, list(range(rows)))
            self._tokens = np.array(_greedy(self._decoder, step), np.int32)
            self._cached += 1

    def _read(self, ids: Int32) -> Step:
        """The last step of a prompt, after those before were run."""
        chunk = Settings.prefill_chunk
        starts = range(0, len(ids), chunk)
        for start in starts:
            part = ids[start : start + chunk]
            wanted = [len(part) - 1] if start == starts[-1] else []
            step = _step(self._decoder.embed(part)[None], [start], wanted, is_prompt=True)
            if not wanted:
                self._decoder.forward(step)
        return step


def _greedy(session: DecoderSession, step: Step) -> list[int]:
    found = session.sample(step, [Draw()] * len(step.logit_positions))
    return [int(each) if np.ndim(each) == 0 else int(np.argmax(each)) for each in found]


def _step(embeds: Any, past: list[int], wanted: list[int], *, is_prompt: bool = False) -> Step:
    return Step(
        first_slot=0,
        inputs_embeds=embeds,
        past_lengths=np.array(past, np.int32),
        logit_positions=np.array(wanted, np.int64),
        is_prompt=is_prompt,
    )
