"""What a request asks, as its tensors tell it."""

from types import SimpleNamespace

import numpy as np
from tests.repository.bad_inputs import EMBEDS, TILES, pictured, prompt
from tests.repository.raw import ints, text
from tests.runtime.decoding import Clock

from vitrail.core import GenerateOptions, Visual
from vitrail.triton.arrivals import Arrivals
from vitrail.triton.question import VISION_STARTED, read_abort, read_question


def test_pictures_of_a_plain_question_are_one_unless_it_is_told(manifest):
    def pictures(**tensors):
        question = read_question({"text_input": text("hi"), **tensors}, manifest=manifest)
        return [segment.tiles for segment in question.segments if isinstance(segment, Visual)]

    assert pictures() == []
    assert pictures(tiles=TILES) == [2]
    assert pictures(tiles=TILES, num_tiles=ints(1, 1)) == [1, 1]
    assert pictures(tiles=TILES[:0], image_embeds=EMBEDS) == [2]


def test_options_come_as_json_and_singly(manifest):
    tensors = {
        "prompt": prompt(),
        "options": text('{"seed": 3, "stop": ["."]}'),
        "max_tokens": ints(9),
        "temperature": np.array([0.5], np.float32),
    }
    options = read_question(tensors, manifest=manifest).options
    assert options == GenerateOptions(max_tokens=9, temperature=0.5, seed=3, stop=(".",))


def test_the_time_of_vision_counts_from_its_start_and_a_clock_that_was_set_does_not(manifest, monkeypatch):
    monkeypatch.setattr("vitrail.triton.question.time", SimpleNamespace(time=Clock(1e9)))

    def vision_ms(started_s):
        tensors = {"prompt": pictured(2), "image_embeds": EMBEDS, VISION_STARTED: np.full((2, 1), started_s)}
        return read_question(tensors, manifest=manifest).vision_ms

    assert vision_ms(1e9 - 2) == 2000
    assert vision_ms(1e9 + 60) == vision_ms(0.0) == vision_ms(np.nan) == 0.0


def test_an_abort_is_known_by_its_input():
    assert read_abort({"text_input": text("hi")}) is None
    assert read_abort({"abort": text("me")}) == "me"


def test_announcements_of_requests_that_never_come_are_forgotten():
    clock = Clock(0.0)
    arrivals = Arrivals(limit=2, clock=clock)
    for name in "abc":
        arrivals.note(name)
        clock.now_s += 1
    assert [arrivals.take_ms(name) for name in "abcc"] == [0, 2000, 1000, 0]
