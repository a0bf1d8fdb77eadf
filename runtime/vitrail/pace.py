"""How much of the time the prompts may take from the answers that are being written. Pure: durations are told to it.

A chunk of a prompt delays every answer by what it costs. It is made as long as takes a few decode steps, then answers
go on until the average of their steps is within the bound again.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import linear_regression

# A chunk is to cost so many decode steps,
CHUNK_STEPS = 2.0
# and so many times what it costs without its tokens: where prompts have a graph of their own, that can be more than a
# step, and chunks would shrink to a token that costs as much as thirty.
CHUNK_FIXED_COSTS = 2.0
# Prompts get a tenth of the time however tight the bound is: nobody waits for ever.
LEAST_SLOWDOWN = 1.1
# Weight of the newest measurement.
_GAIN = 0.3
# The latest chunks tell what one costs without its tokens, once the longest has so many times the tokens of the shortest.
_CHUNKS, _SPREAD = 16, 2


class Pace:
    """The length of the next chunk, from what the last steps cost.

    largest_chunk: tokens of a chunk where nothing is being written; slowdown: how many times longer answers may take
    per token while prompts are read (infinite for no bound), or tpot_target_s, seconds per token, instead.
    """

    def __init__(self, *, largest_chunk: int, slowdown: float, tpot_target_s: float | None = None) -> None:
        self.largest_chunk = largest_chunk
        self._slowdown = slowdown
        self._tpot_target_s = tpot_target_s
        self._step_s = 0.0  # of a decode step that nothing disturbs; 0 until one was measured
        self._chunks: deque[tuple[int, float]] = deque(maxlen=_CHUNKS)  # tokens and seconds
        self._fixed_s = 0.0  # of a chunk, whatever its length
        self._token_s = 0.0  # of a prompt's token, beside that
        self._owed_s = 0.0  # of chunks, which decode steps have not made up for yet
        self._after_chunk = False

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
        steps_s = max(CHUNK_STEPS, self.slowdown - 1) * self._step_s
        chunk_s = max(steps_s, CHUNK_FIXED_COSTS * self._fixed_s)
        return max(1, min(self.largest_chunk, int((chunk_s - self._fixed_s) / self._token_s)))

    def read(self, tokens: int, seconds: float, *, writing: bool) -> None:
        """A chunk took so long."""
        self._chunks.append((tokens, seconds))
        self._fixed_s = self._fixed_cost_s()
        # Not averaged: a token costs more the more of its prompt lies before it, and the next chunk follows this one.
        self._token_s = (seconds - self._fixed_s) / tokens
        self._owed_s = self._owed_s + seconds if writing else 0.0
        self._after_chunk = True

    def _fixed_cost_s(self) -> float:
        """What a chunk would cost without tokens, at most three quarters of the latest: as before where all of them are
        too much alike to tell.
        """
        lengths = [tokens for tokens, _ in self._chunks]
        times_s = [seconds for _, seconds in self._chunks]
        found_s = self._fixed_s
        if max(lengths) >= _SPREAD * min(lengths):
            found_s = linear_regression(lengths, times_s).intercept
        return max(0.0, min(found_s, 0.75 * times_s[-1]))

    def wrote(self, seconds: float) -> None:
        """A decode step took so long. Right after a chunk it finds the processor's caches full of other things, so what
        steps cost undisturbed is then told by a faster one only.
        """
        if not self._step_s:
            self._step_s = seconds
        elif not self._after_chunk or seconds < self._step_s:
            self._step_s += _GAIN * (seconds - self._step_s)
        self._after_chunk = False
        left_s = max(self.slowdown * self._step_s - seconds, (LEAST_SLOWDOWN - 1) * seconds)
        self._owed_s = max(self._owed_s - left_s, -left_s)
