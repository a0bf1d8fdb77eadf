"""Image embeddings in the token sequence."""

from __future__ import annotations

import numpy as np
import pytest

from vitrail.errors import InvalidInput
from vitrail.session.fake import IMAGE_CONTEXT_ID, FakeDecoder
from vitrail.splice import PromptEmbeds, splice

SESSION = FakeDecoder()
IDS = np.array([5, 9, 9, 6, 9, 9, 7], np.int32)
IMAGES = np.arange(32, dtype=np.float32).reshape(2, 2, 8)


def test_image_rows_take_the_places_of_image_tokens_in_order():
    embeds = SESSION.embed(IDS)
    before = embeds.copy()
    spliced = splice(embeds, IDS, IMAGES, 9)
    assert (spliced[[1, 2, 4, 5]] == IMAGES.reshape(4, 8)).all()
    assert (spliced[[0, 3, 6]] == before[[0, 3, 6]]).all()
    assert (embeds == before).all()


def test_the_result_has_the_dtype_of_the_token_embeds():
    assert splice(SESSION.embed(IDS).astype(np.float16), IDS, IMAGES, 9).dtype == np.float16


@pytest.mark.parametrize("images", [IMAGES[:1], np.concatenate([IMAGES, IMAGES]), IMAGES[:0]])
def test_a_wrong_number_of_image_rows_is_refused_with_both_numbers(images):
    with pytest.raises(InvalidInput, match=f"{images.size // 8} image embeds for 4 image tokens"):
        splice(SESSION.embed(IDS), IDS, images, 9)


@pytest.mark.parametrize("images", [IMAGES.reshape(2, 4, 4), IMAGES[0, 0]])
def test_image_rows_of_another_width_are_refused(images):
    with pytest.raises(InvalidInput, match="8 wide"):
        splice(SESSION.embed(IDS), IDS, images, 9)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_chunks_of_a_prompt_are_the_parts_of_the_whole(size):
    prompt = PromptEmbeds(SESSION, IDS, IMAGES, image_context_id=9)
    chunks = [prompt.chunk(start, min(start + size, 7)) for start in range(0, 7, size)]
    assert (np.concatenate(chunks) == splice(SESSION.embed(IDS), IDS, IMAGES, 9)).all()


def test_image_places_are_not_looked_up_in_the_table_and_the_result_has_its_dtype():
    asked = []

    class Noting(FakeDecoder):
        def embed(self, token_ids):
            asked.extend(token_ids.tolist())
            return super().embed(token_ids).astype(np.float16)

    prompt = PromptEmbeds(Noting(), IDS, IMAGES, image_context_id=9)
    assert prompt.chunk(0, 7).dtype == prompt.chunk(1, 3).dtype == np.float16
    assert asked == [5, 6, 7]


def test_a_prompt_without_pictures_is_only_looked_up():
    prompt = PromptEmbeds(SESSION, IDS, None, image_context_id=IMAGE_CONTEXT_ID)
    assert (prompt.chunk(2, 5) == SESSION.embed(IDS[2:5])).all()


def test_text_ids_leave_the_image_places_out():
    assert PromptEmbeds(SESSION, IDS, IMAGES, image_context_id=9).text_ids().tolist() == [5, 6, 7]
