"""Decoder steps as GPU sessions run them: decode steps over aligned blocks of slots, long prompts in parts. Pure.

CUDA graphs want few different runs, so a decode step covers an aligned block of 1, 2, 4, ... slots: a graph per block, fewer
than two per slot. Rows of the block outside the step write one token where their slot keeps none, and are not read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vitrail.session import Step

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from vitrail.core import Float, Int32, Int64


class Block(NamedTuple):
    """Slots first .. first + rows - 1."""

    first: int
    rows: int


class Wanted(NamedTuple):
    """Rows of the device's logits that a step asked for, and how many it computed."""

    rows: Int64
    computed: int


def covering(first: int, rows: int, *, slots: int) -> Block:
    """The smallest block of 2^k slots, at a multiple of its size, that covers a span; all slots where none does."""
    size = 1
    while first // size != (first + rows - 1) // size:
        size *= 2
    start = first // size * size
    return Block(start, size) if start + size <= slots else Block(0, slots)


def widened(step: Step, block: Block, *, idle_position: int | Int32) -> Step:
    """A decode step over the whole block; its rows beside the step are zeros at idle_position, one for all or each row's."""
    if block == (step.first_slot, len(step.past_lengths)):
        return step
    begin = step.first_slot - block.first
    rows = slice(begin, begin + len(step.past_lengths))
    embeds: Float = np.zeros((block.rows, *step.inputs_embeds.shape[1:]), step.inputs_embeds.dtype)
    embeds[rows] = step.inputs_embeds
    past: Int32 = np.full(block.rows, idle_position, np.int32)
    past[rows] = step.past_lengths
    return Step(block.first, embeds, past, step.logit_positions + begin)


def chunks(step: Step, *, new_tokens: int) -> Iterator[Step]:
    """A step of one row in parts of at most so many new tokens; other steps as they are."""
    total = step.inputs_embeds.shape[1]
    if total <= new_tokens or len(step.past_lengths) > 1:
        yield step
        return
    for start in range(0, total, new_tokens):
        part = step.inputs_embeds[:, start : start + new_tokens]
        inside = (step.logit_positions >= start) & (step.logit_positions < start + part.shape[1])
        positions = step.logit_positions[inside] - start
        yield replace(
            step, inputs_embeds=part, past_lengths=step.past_lengths + start, logit_positions=positions
        )


def distinct_rows(positions: npt.NDArray[np.int64], rows: int) -> npt.NDArray[np.int64]:
    """Positions [m]; where there are none, the last of `rows`, since an engine computes logits for one at least."""
    return positions if len(positions) else np.array([rows - 1], np.int64)
