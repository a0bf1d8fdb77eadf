"""Every reference case through the whole runtime, in process: tiles, prompt, ids, features, logits, answers."""

import hashlib

import numpy as np
import pytest
from tests.conftest import CHECKPOINTS, case_messages, case_options, expected_cases

from vitrail.engine import Engine

CASES = ("astronaut", "rocket", "two_images", "multi_turn", "text_only")


@pytest.fixture(scope="module", params=[*CHECKPOINTS, *(f"{name}-hf" for name in CHECKPOINTS)])
def engine(request, exported):
    with Engine.load(exported(request.param), slots=2, context_tokens=4096) as loaded:
        yield request.param.removesuffix("-hf"), loaded


@pytest.fixture(params=CASES)
def case(request, engine):
    checkpoint, loaded = engine
    return expected_cases(checkpoint)[request.param], loaded


def prompt_of(case, engine):
    return engine.prompt(case_messages(case), max_tiles=case_options(case)["max_tiles"])


def test_tiles_are_byte_for_byte_the_reference(case):
    expected, engine = case
    tiles = prompt_of(expected, engine).tiles.transpose(0, 2, 3, 1)
    assert [hashlib.sha256(tile.tobytes()).hexdigest() for tile in tiles] == expected["tile_sha"]


def test_the_prompt_is_character_for_character_the_reference(case):
    expected, engine = case
    text = expected["prompt_before_expansion"]
    for count in expected["tiles_per_image"]:
        text = text.replace("<image>", "<img>" + "<IMG_CONTEXT>" * 256 * count + "</img>", 1)
    assert prompt_of(expected, engine).text == text


def test_token_ids_equal_the_reference(case):
    expected, engine = case
    ids = np.array(prompt_of(expected, engine).token_ids, "<i8")
    assert ids.size == expected["n_input_ids"]
    assert hashlib.sha256(ids.tobytes()).hexdigest() == expected["input_ids_sha"]


def test_visual_features_equal_the_reference(case):
    expected, engine = case
    if not expected["tiles_per_image"]:
        return
    vision = engine._vision._session
    embeds = vision.project(vision.encode(prompt_of(expected, engine).tiles))
    np.testing.assert_allclose(embeds[0, 0, :6], expected["vision_first"], atol=1e-4)
    np.testing.assert_allclose(embeds[-1, -1, -6:], expected["vision_last"], atol=1e-4)
    assert np.linalg.norm(embeds) == pytest.approx(expected["vision_norm"], rel=1e-5)


def test_greedy_tokens_and_text_equal_the_reference(case):
    expected, engine = case
    answer = engine.chat(case_messages(expected), **case_options(expected))
    assert list(answer.choices[0].token_ids) == expected["greedy_ids"]
    assert answer.text == expected["text"].strip()
    assert answer.finish_reason == "length"


def test_log_probabilities_are_those_of_the_reference_logits(case):
    """A log-probability is a logit less one constant: differences between the top ten must agree."""
    expected, engine = case
    options = {**case_options(expected), "max_tokens": 1, "logprobs": 10}
    first = engine.chat(case_messages(expected), **options).choices[0].logprobs[0]
    got = dict(first.top)
    assert list(got) == expected["top10_ids"]
    gaps = np.array(list(got.values())) - first.logprob
    np.testing.assert_allclose(
        gaps, np.array(expected["top10_logits"]) - expected["top10_logits"][0], atol=1e-4
    )


def test_the_answer_reports_grid_tiles_and_visual_tokens(case):
    expected, engine = case
    report = engine.chat(case_messages(expected), **{**case_options(expected), "max_tokens": 1}).report
    assert [image.tiles for image in report.images] == expected["tiles_per_image"]
    assert report.visual_tokens == 256 * sum(expected["tiles_per_image"])
    assert report.prompt_tokens == expected["n_input_ids"]
