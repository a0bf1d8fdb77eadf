"""The decoder for TensorRT beside the decoder for ONNX Runtime, both on ONNX Runtime's CPU provider."""

import numpy as np
import pytest
from tests.conftest import CHECKPOINTS, case_messages, case_options, expected_cases
from tests.export.test_graphs import decoder, feed, vision

from vitrail.engine import Engine
from vitrail.splice import splice

CAPACITY = 4096


@pytest.fixture(scope="module", params=CHECKPOINTS)
def pair(request, exported):
    ort, standard = (exported(request.param, dialect=dialect) for dialect in ("ort", "standard"))
    with Engine.load(ort, slots=1, context_tokens=CAPACITY) as engine:
        decoders = [decoder(directory, capacity=CAPACITY) for directory in (ort, standard)]
        yield request.param, engine, vision(ort), decoders


@pytest.mark.parametrize("case", ["astronaut", "rocket", "two_images", "multi_turn", "text_only"])
def test_the_standard_decoder_equals_the_one_for_onnxruntime_on_every_reference_case(pair, case):
    checkpoint, engine, encoder, decoders = pair
    expected = expected_cases(checkpoint)[case]
    prompt = engine.prompt(case_messages(expected), max_tiles=case_options(expected)["max_tiles"])
    ids, image = np.array(prompt.token_ids), encoder.project(encoder.encode(prompt.tiles))
    context = engine.manifest.tokenizer.image_context_id
    embeds = splice(decoders[0].embed(ids), ids, image, context)
    ort, standard = (answer(each, embeds, expected["greedy_ids"]) for each in decoders)
    assert list(standard.argmax(axis=1)) == expected["greedy_ids"]
    np.testing.assert_allclose(standard, ort, atol=1e-4)


def answer(session, embeds, tokens):
    """Logits of every step of an answer that is known."""
    steps = [feed(session, embeds)]
    for i, token in enumerate(tokens[:-1]):
        steps.append(feed(session, session.embed(np.array([token])), past=len(embeds) + i))
    return np.concatenate(steps)
