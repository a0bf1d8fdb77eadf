"""How much of the time the prompts may take from the answers that are being written. Pure: durations are told to it.

A chunk of a prompt delays every answer by what it costs. It is made as long as takes a few decode steps, then answers
go on until the average of their steps is within the bound again.
"""

from __future__ import annotations

import math

# A chunk is to cost so many decode steps. A step's fixed cost is part of both, so at least half of a chunk's time
# goes into its tokens, however few they are.
CHUNK_STEPS = 2.0
# Prompts get a tenth of the time however tight the bound is: nobody waits for ever.
LEAST_SLOWDOWN = 1.1
# Weight of the newest measurement.
_GAIN = 0.3


class Pace:
    """The length of the next chunk, from what the last steps cost.

    largest_chunk: tokens of a chunk where nothing is being written; slowdown: how many times longer answers may take
    per token while prompts are read (infinite for no bound), or tpot_target_s, seconds per token, instead.
    """

    def __init__(self, *, largest_chunk: int, slowdown: float, tpot_target_s: float | None = None) -> None:
        self.largest_chunk = largest_chunk
        self._slowdown = slowdown
        self._tpot_target_s = tpot_target_s
        self._step_s = 0.0  # of a decode step; 0 until one was measured
        self._token_s = 0.0  # of a prompt's token, its share of the chunk's fixed cost included
        self._owed_s = 0.0  # decode time that is due before the next chunk

    @property
    def slowdown(self) -> float:
        """The bound as a factor."""
        if self._tpot_target_s is None:
            return self._slowdown
        return max(LEAST_SLOWDOWN, self._tpot_target_s / self._step_s) if self._step_s else math.inf

    def chunk(self, *, writing: bool) -> int:
        """Tokens of the next chunk, where answers are being `writing` that it delays; 0: decode first."""
        if not writing or self.slowdown == math.inf or not (self._step_s and self._token_s):
            return self.largest_chunk
        if self._owed_s > 0:
            return 0
        chunk_s = max(CHUNK_STEPS, self.slowdown - 1) * self._step_s
        return max(1, min(self.largest_chunk, int(chunk_s / self._token_s)))

    def read(self, tokens: int, seconds: float, *, writing: bool) -> None:
        """A chunk took so long."""
        # Not averaged: the fixed cost's share depends on the length, and this is the length to go on from.
        self._token_s = seconds / tokens
        self._owed_s = self._owed_s + seconds / (self.slowdown - 1) if writing else 0.0

    def wrote(self, seconds: float) -> None:
        """A decode step took so long."""
        self._step_s += (_GAIN if self._step_s else 1.0) * (seconds - self._step_s)
        self._owed_s = max(self._owed_s - seconds, -seconds)
