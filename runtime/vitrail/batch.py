"""A scheduled batch as the step that a session runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitrail.schedule import Decode, Prefill
from vitrail.session import Step

if TYPE_CHECKING:
    from vitrail.sequence import Sequence
    from vitrail.session import DecoderSession


def to_step(batch: Prefill[Sequence] | Decode[Sequence], session: DecoderSession) -> Step:
    """The step of a batch, with the input embeddings of its tokens."""
    return prefill_step(batch) if isinstance(batch, Prefill) else decode_step(batch, session)


def prefill_step(batch: Prefill[Sequence]) -> Step:
    """One row of stop - start prompt tokens; logits for the prompt's last token only."""
    assert batch.row.prompt is not None
    return Step(
        first_slot=batch.row.slot,
        inputs_embeds=batch.row.prompt.chunk(batch.start, batch.stop)[None],
        past_lengths=np.array([batch.start], np.int32),
        logit_positions=np.array([batch.new_tokens - 1] if batch.last else [], np.int64),
        is_prompt=True,
    )


def decode_step(batch: Decode[Sequence], session: DecoderSession) -> Step:
    """The last token of every decoding row; zeros in the rows that are carried along, and no logits of theirs."""
    places = np.array([row.slot - batch.first_slot for row in batch.rows], np.int64)
    tokens = session.embed(np.array([row.tokens[-1] for row in batch.rows], np.int32))
    embeds = np.zeros((len(batch.past_lengths), 1, tokens.shape[-1]), tokens.dtype)
    embeds[places, 0] = tokens
    return Step(
        first_slot=batch.first_slot,
        inputs_embeds=embeds,
        past_lengths=np.array(batch.past_lengths, np.int32),
        logit_positions=places,
    )
