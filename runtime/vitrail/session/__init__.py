"""What runs the exported graphs. The engine knows these protocols only; each module here implements them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from vitrail.sample import likeliest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vitrail.core import Float, Int32, Int64, Uint8
    from vitrail.sample import Draw


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass over slots first_slot .. first_slot + B - 1.

    inputs_embeds [B, S, d], S > 1 for one row only; past_lengths [B] int32, tokens cached before;
    logit_positions int64 [m], indices into the flattened [B * S] positions. is_prompt: whether these are tokens of a prompt,
    not drawn ones.
    A row that is only carried along writes at its past length, past its end: its own next tokens overwrite that.
    """

    first_slot: int
    inputs_embeds: Float
    past_lengths: Int32
    logit_positions: Int64
    is_prompt: bool = False


class DecoderSession(Protocol):
    """The language model with a KV cache of `slots` rows of `capacity` tokens, which it owns.

    reads_as_written: whether a drawn token leaves in the cache what reading it in a prompt would.
    """

    slots: int
    capacity: int
    reads_as_written: bool

    def embed(self, token_ids: Int32) -> Float:
        """Rows of the embedding table: ids [n] -> [n, d]."""
        ...

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` cached tokens of slot `source` to slot `target`."""
        ...

    def forward(self, step: Step) -> Float:
        """Run one step, write the cache in place; float32 logits [m, vocab]."""
        ...

    def sample(self, step: Step, draws: Sequence[Draw | None]) -> Sequence[int | Float]:
        """As forward, but each of the m logits is answered by the token that its draw draws; or by the logits [vocab]
        themselves, where the draw is None and where the session cannot.
        """
        ...


class OnHost:
    """For sessions whose logits arrive on the host: greedy tokens are found here, a step's at once."""

    reads_as_written = True

    def forward(self, step: Step) -> Float:
        raise NotImplementedError

    def sample(self, step: Step, draws: Sequence[Draw | None]) -> Sequence[int | Float]:
        return likeliest(self.forward(step), draws)


class VisionSession(Protocol):
    """Vision encoder and projector."""

    def encode(self, tiles: Uint8) -> Float:
        """uint8 [n, 3, S, S] -> features [n, tokens_per_tile, feature_size], in runs of at most the tile limit."""
        ...

    def project(self, features: Float) -> Float:
        """Features [n, tokens_per_tile, feature_size] -> embeds [n, tokens_per_tile, d]."""
        ...

    def see(self, tiles: Uint8) -> Float:
        """Both, tiles -> embeds: on a GPU the features stay there."""
        ...


class InSteps:
    """For vision sessions whose features pass through the host."""

    def encode(self, tiles: Uint8) -> Float:
        raise NotImplementedError

    def project(self, features: Float) -> Float:
        raise NotImplementedError

    def see(self, tiles: Uint8) -> Float:
        return self.project(self.encode(tiles))
