"""Image embeddings into the token sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitrail.errors import InvalidInput
from vitrail.kv import NOTHING, prompt_keys

if TYPE_CHECKING:
    from vitrail.core import Float, Int32
    from vitrail.kv import Keys
    from vitrail.session import DecoderSession


def splice(token_embeds: Float, token_ids: Int32, image_embeds: Float, image_context_id: int) -> Float:
    """Embeds [n, d] where the rows of `image_context_id` are replaced, in order, by image_embeds [..., d].

    The result has the dtype of token_embeds; token_embeds is not changed. Raises InvalidInput when the places and
    the image embeds differ in number or width.
    """
    places = np.flatnonzero(token_ids == image_context_id)
    check_image_embeds(len(places), image_embeds, width=token_embeds.shape[-1])
    spliced = token_embeds.copy()
    spliced[places] = image_embeds.reshape(-1, token_embeds.shape[-1])
    return spliced


def check_image_embeds(places: int, image_embeds: Float, *, width: int) -> None:
    """Raise InvalidInput unless image_embeds [..., width] holds exactly one row for every place."""
    shape = image_embeds.shape
    if image_embeds.ndim < 2 or shape[-1] != width:
        raise InvalidInput(
            f"image embeds have shape {list(shape)}, but this model's are {width} wide: [tiles, tokens_per_tile, {width}]; "
            "use the vision encoder and projector of the same export"
        )
    rows = image_embeds.size // width
    if rows != places:
        raise InvalidInput(
            f"{rows} image embeds for {places} image tokens in the prompt; every tile needs one embed for each of its "
            "image tokens, so send the embeds of exactly the prompt's tiles"
        )


class PromptEmbeds:
    """A prompt's input embeddings, made chunk by chunk: a long prompt's are never all in memory.

    token_ids int32 [P]; image_embeds [tiles, tokens_per_tile, d], already checked against the ids, or None.
    keys: what its tokens are known by in the KV cache; none where nothing is to be found there again.
    """

    def __init__(
        self,
        session: DecoderSession,
        token_ids: Int32,
        image_embeds: Float | None,
        *,
        image_context_id: int,
        reuse: bool = True,
    ) -> None:
        self.keys: Keys = prompt_keys(token_ids, image_embeds, image_context_id) if reuse else NOTHING
        self._session = session
        self._token_ids = token_ids
        self._image_embeds = image_embeds
        self._image_context_id = image_context_id

    @property
    def pictured(self) -> bool:
        return self._image_embeds is not None

    def chunk(self, start: int, stop: int) -> Float:
        """Input embeddings [stop - start, d] of prompt tokens start .. stop - 1."""
        token_ids = self._token_ids[start:stop]
        if self._image_embeds is None:
            return self._session.embed(token_ids)
        # As `splice`, but no image place is looked up, and every row is written once.
        pictured = token_ids == self._image_context_id
        words = self._session.embed(token_ids[~pictured])
        first = int(np.count_nonzero(self._token_ids[:start] == self._image_context_id))
        rows = self._image_embeds.reshape(-1, words.shape[-1])[first : first + np.count_nonzero(pictured)]
        embeds: Float = np.empty((len(token_ids), words.shape[-1]), words.dtype)
        embeds[~pictured], embeds[pictured] = words, rows
        return embeds

    def text_ids(self) -> Int32:
        """The prompt's ids without image places."""
        ids: Int32 = self._token_ids[self._token_ids != self._image_context_id]
        return ids
