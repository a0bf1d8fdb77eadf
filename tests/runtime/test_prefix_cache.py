"""A prompt's beginning that is still cached is used again, and changes no answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.conftest import REFERENCE
from tests.runtime.decoding import Sink, make

from vitrail.core import GenerateOptions
from vitrail.decoder import Request
from vitrail.engine import Engine
from vitrail.session.fake import IMAGE_CONTEXT_ID, FakeDecoder

OPTIONS = GenerateOptions(max_tokens=6, ignore_eos=True)


def run(decoder, *requests):
    sinks = [Sink() for _ in requests]
    for request, sink in zip(requests, sinks, strict=True):
        decoder.submit(request, sink)
    while decoder.step():
        pass
    return [sink.completion for sink in sinks]


def asking(name, *ids, options=OPTIONS, embeds=None):
    return Request(id=name, token_ids=np.array(ids, np.int32), image_embeds=embeds, options=options)


def alone(*ids, options=OPTIONS, embeds=None):
    return run(make(prefix_cache=False), asking("alone", *ids, options=options, embeds=embeds))[0].choices


def test_the_next_turn_of_a_conversation_prefills_only_what_is_new():
    decoder, first = make(slots=2), [10, 11, 12, 13, 14, 15]
    answer = run(decoder, asking("1", *first))[0]
    turn = [*first, *answer.choices[0].token_ids, 20, 21]
    again = run(decoder, asking("2", *turn))[0]
    assert again.report.reused_tokens == len(first) + 5
    assert again.choices == alone(*turn)


def test_drawn_tokens_are_read_again_where_reading_leaves_something_else():
    class Apart(FakeDecoder):
        """Reads prompts in a precision of its own."""

        reads_as_written = False

        def forward(self, step):
            return super().forward(
                step if step.is_prompt else replace(step, inputs_embeds=1.1 * step.inputs_embeds)
            )

    first = [10, 11, 12, 13, 14, 15]
    answers = {}
    for reuse in (True, False):
        decoder = make(Apart(), prefix_cache=reuse)
        drawn = run(decoder, asking("1", *first))[0].choices[0].token_ids
        answers[reuse] = run(decoder, asking("2", *first, *drawn, 20, 21))[0]
    assert answers[True].report.reused_tokens == len(first)
    assert answers[True].choices == answers[False].choices


def test_another_question_about_the_same_picture_reuses_the_picture():
    decoder, embeds = make(slots=2), np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    places = [IMAGE_CONTEXT_ID] * 6
    run(decoder, asking("1", 5, *places, 30, embeds=embeds))
    other = run(decoder, asking("2", 5, *places, 40, 41, embeds=embeds.copy()))[0]
    assert other.report.reused_tokens == 7
    assert other.choices == alone(5, *places, 40, 41, embeds=embeds)


def test_another_picture_is_not_mistaken_for_the_first():
    decoder, chance = make(slots=2), np.random.default_rng(0)
    one, two = (chance.normal(size=(2, 3, 8)).astype(np.float32) for _ in range(2))
    places = [IMAGE_CONTEXT_ID] * 6
    run(decoder, asking("1", 5, *places, 30, embeds=one))
    other = run(decoder, asking("2", 5, *places, 30, embeds=two))[0]
    assert other.report.reused_tokens == 1
    assert other.choices == alone(5, *places, 30, embeds=two)


def test_several_answers_to_one_prompt_prefill_it_once():
    decoder = make(slots=3)
    options = GenerateOptions(max_tokens=4, ignore_eos=True, n=3, temperature=1.0, seed=5)
    ids = list(range(20, 32))
    answers = run(decoder, asking("1", *ids, options=options))[0]
    assert answers.choices == alone(*ids, options=options)
    assert answers.report.reused_tokens == 2 * (len(ids) - 1)


def test_a_live_conversation_lends_its_beginning():
    decoder, ids = make(slots=2), list(range(40, 50))
    first, second = Sink(), Sink()
    decoder.submit(asking("1", *ids), first)
    for _ in range(4):
        decoder.step()
    decoder.submit(asking("2", *ids, 60), second)
    while decoder.step():
        pass
    assert second.completion.report.reused_tokens == len(ids)
    assert first.completion.choices == alone(*ids)
    assert second.completion.choices == alone(*ids, 60)


def test_what_a_free_slot_keeps_survives_the_steps_of_its_neighbours():
    decoder, kept = make(slots=3), [70, 71, 72, 73, 74]
    run(decoder, asking("0", 1, 2, 3), asking("1", *kept), asking("2", 4, 5, 6))
    run(decoder, asking("3", 1, 2, 3, 9), asking("4", 4, 5, 6, 9))
    again = run(decoder, asking("5", *kept, 99))[0]
    assert again.report.reused_tokens == len(kept)
    assert again.choices == alone(*kept, 99)


def test_nothing_is_kept_of_a_request_that_failed():
    class Poisoned(FakeDecoder):
        def _logits(self, slot, position):
            logits = super()._logits(slot, position)
            return np.full_like(logits, np.nan) if position == 7 else logits

    decoder = make(Poisoned(), slots=4)
    sink = Sink()
    decoder.submit(asking("1", 1, 2, 3, 4, 5, 6), sink)
    while decoder.step():
        pass
    assert (
        run(decoder, asking("2", 1, 2, 3, options=GenerateOptions(max_tokens=2)))[0].report.reused_tokens == 0
    )


def test_it_can_be_switched_off():
    decoder = make(prefix_cache=False)
    run(decoder, asking("1", 1, 2, 3))
    assert run(decoder, asking("2", 1, 2, 3))[0].report.reused_tokens == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_hundred_conversations_answer_as_without_it(seed):
    chance = np.random.default_rng(seed)
    stems = [chance.integers(0, 256, n).tolist() for n in (3, 9, 14)]
    prompts = [
        [*stems[chance.integers(3)], *chance.integers(0, 256, chance.integers(1, 6)).tolist()]
        for _ in range(100)
    ]
    answers = {}
    for reuse in (True, False):
        decoder = make(slots=4, prefix_cache=reuse, queue_limit=200)
        found = run(decoder, *(asking(str(n), *prompt) for n, prompt in enumerate(prompts)))
        answers[reuse] = [completion.choices for completion in found]
    assert answers[True] == answers[False]


@pytest.mark.parametrize("dialect", ["ort", "standard"])
def test_real_sessions_answer_alike_with_and_without_it(exported, dialect):
    picture = {"type": "image", "image": REFERENCE / "images" / "coffee.png"}
    asked = ["What is it?", "What colour is it?"]
    answers = []
    for reuse in (True, False):
        with Engine.load(
            exported("internvl3-tiny", dialect=dialect), slots=2, context_tokens=4096, prefix_cache=reuse
        ) as engine:
            for text in asked:
                messages = [{"role": "user", "content": [picture, {"type": "text", "text": text}]}]
                answers.append(engine.chat(messages, max_tokens=16, max_tiles=2, ignore_eos=True))
    assert [a.choices[0].token_ids for a in answers[:2]] == [a.choices[0].token_ids for a in answers[2:]]
    assert answers[1].report.reused_tokens > 3 * 256
    assert [answer.report.reused_tokens for answer in answers[2:]] == [0, 0]
