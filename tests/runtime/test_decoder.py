"""Continuous batching on a fake session whose logits depend on every cached embedding of their row."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
from tests.runtime.decoding import (
    MIXED,
    Clock,
    Fixed,
    Sink,
    answers,
    drain,
    idle,
    make,
    request,
    solo,
)

from vitrail.errors import OptionError
from vitrail.session.fake import STOP_ID, FakeDecoder


def test_answers_of_a_full_batch_are_their_solo_answers():
    decoder, sinks = make(), [Sink() for _ in MIXED]
    for asked, sink in zip(MIXED, sinks, strict=True):
        decoder.submit(asked, sink)
    drain(decoder)
    assert [answers(sink.completion) for sink in sinks] == [answers(solo(asked)) for asked in MIXED]
    assert idle(decoder)


def test_different_requests_have_different_answers():
    assert len({str(answers(solo(asked))) for asked in MIXED}) == len(MIXED)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 26, 40])
def test_a_prompt_in_chunks_has_the_answer_of_the_whole(chunk):
    assert answers(solo(MIXED[7], prefill_chunk=chunk)) == answers(solo(MIXED[7]))


@pytest.mark.parametrize("join_at", range(0, 14, 2))
def test_a_request_that_joins_at_any_step_changes_no_answer(join_at):
    decoder, sinks = make(), [Sink(), Sink(), Sink()]
    decoder.submit(MIXED[4], sinks[0])
    decoder.submit(MIXED[1], sinks[1])
    for _ in range(join_at):
        decoder.step()
    decoder.submit(MIXED[2], sinks[2])
    drain(decoder)
    assert [answers(s.completion) for s in sinks] == [answers(solo(MIXED[n])) for n in (4, 1, 2)]


@pytest.mark.parametrize("leave_at", range(14))
def test_a_request_that_leaves_at_any_step_changes_no_answer_and_its_slot_is_used_again(leave_at):
    decoder, sinks = make(FakeDecoder(slots=2)), [Sink(), Sink(), Sink()]
    for n, sink in zip((4, 1, 2), sinks, strict=True):
        decoder.submit(MIXED[n], sink)
    for _ in range(leave_at):
        decoder.step()
    gone = bool(sinks[0].finals)
    assert decoder.abort("r4") is not gone
    drain(decoder)
    assert sinks[0].reason == ("length" if gone else "cancelled")
    assert [answers(s.completion) for s in sinks[1:]] == [answers(solo(MIXED[n])) for n in (1, 2)]
    assert idle(decoder)


def test_prefill_and_decode_alternate_while_both_have_work():
    session = FakeDecoder()
    decoder = make(session)
    decoder.submit(request(1, tokens=4, max_tokens=20), Sink())
    decoder.step()
    decoder.submit(request(2, tokens=17), Sink())
    for _ in range(6):
        decoder.step()
    assert [step.inputs_embeds.shape[1] for step in session.steps] == [4, 1, 5, 1, 5, 1, 5]


class Machine(FakeDecoder):
    """A session that takes time, on its clock: a fixed part of every step and one for each token."""

    def __init__(self, clock, **sizes) -> None:
        super().__init__(**sizes)
        self.clock = clock

    def forward(self, step):
        self.clock.now_s += 0.1 + 0.01 * step.inputs_embeds.shape[0] * step.inputs_embeds.shape[1]
        return super().forward(step)


@pytest.mark.parametrize(
    ("slowdown", "least", "most"), [(2.0, 1.5, 2.1), (4.0, 2.0, 4.1), (math.inf, 4.0, 99.0)]
)
def test_an_answer_keeps_its_pace_while_a_long_prompt_is_read(slowdown, least, most):
    clock, times = Clock(), []
    decoder = make(Machine(clock, capacity=900), clock=clock, prefill_chunk=64, tpot_slowdown=slowdown)
    decoder.submit(request(1, max_tokens=300), lambda _: times.append(clock.now_s))
    for _ in range(10):
        decoder.step()
    begun = len(times)
    long = Sink()
    decoder.submit(request(2, tokens=800, max_tokens=1), long)
    while not long.finals:
        decoder.step()
    during_s = (times[-1] - times[begun - 1]) / (len(times) - begun)
    assert least < during_s / 0.11 < most


def test_only_the_last_chunk_asks_for_logits():
    session = FakeDecoder()
    decoder = make(session)
    decoder.submit(request(1, tokens=12, max_tokens=1), Sink())
    drain(decoder)
    assert [step.logit_positions.tolist() for step in session.steps] == [[], [], [1]]
    assert all(step.logit_positions.dtype == np.int64 for step in session.steps)


def test_image_embeds_are_let_go_once_they_are_cached():
    decoder = make()
    asked = request(1, tokens=12, tiles=2)
    embeds = weakref.ref(asked.image_embeds)
    decoder.submit(asked, Sink())
    del asked
    decoder.step()
    assert embeds() is not None
    for _ in range(3):
        decoder.step()
    assert embeds() is None
    assert decoder.statistics.live_requests == 1


def test_a_slot_may_be_filled_to_its_last_token_but_one():
    session = FakeDecoder(slots=3, capacity=24)
    decoder, sinks = make(session), [Sink(), Sink(), Sink()]
    asked = [request(n, tokens=15, max_tokens=8) for n in range(3)]
    for one, sink in zip(asked, sinks, strict=True):
        decoder.submit(one, sink)
    drain(decoder)
    assert [answers(s.completion) for s in sinks] == [answers(solo(one)) for one in asked]


def test_a_stop_token_ends_the_answer_without_its_id_or_text_but_is_counted():
    decoder, sink = make(Fixed([65, 66, STOP_ID, 67], prompt_tokens=7)), Sink()
    decoder.submit(request(ignore_eos=False, keep_special_tokens=True, logprobs=0), sink)
    drain(decoder)
    choice = sink.completion.choices[0]
    assert (choice.text, choice.token_ids, choice.finish_reason) == ("AB", (65, 66), "stop")
    assert len(choice.logprobs) == 2
    assert sink.completion.report.completion_tokens == 3


def test_a_stop_token_is_a_token_like_others_with_ignore_eos():
    decoder, sink = make(Fixed([65, STOP_ID], prompt_tokens=7)), Sink()
    decoder.submit(request(keep_special_tokens=True, max_tokens=3), sink)
    drain(decoder)
    assert (sink.completion.text, sink.reason) == (f"A<{STOP_ID}>A", "length")


def test_a_stop_string_across_tokens_ends_the_answer():
    decoder, sink = make(Fixed(list(b"say STOP it"), prompt_tokens=7)), Sink()
    decoder.submit(request(stop=("STOP",), max_tokens=20), sink)
    drain(decoder)
    assert (sink.completion.text, sink.reason) == ("say", "stop")
    assert sink.completion.report.completion_tokens == 8


def test_held_back_text_comes_with_the_last_delta():
    decoder, sink = make(Fixed(list(b"a STO"), prompt_tokens=7)), Sink()
    decoder.submit(request(stop=("STOP",), max_tokens=5), sink)
    drain(decoder)
    assert [event.text for event in sink.events] == ["a", "", "", "", " STO"]
    assert sink.reason == "length"


def test_several_answers_are_drawn_with_seeds_of_their_own():
    options = {"temperature": 1.0, "max_tokens": 6}
    choices = solo(request(3, n=3, seed=11, **options)).choices
    alone = [solo(request(3, seed=seed, **options)).choices[0] for seed in (11, 12, 13)]
    assert [choice.token_ids for choice in choices] == [choice.token_ids for choice in alone]
    assert [choice.index for choice in choices] == [0, 1, 2]


def test_only_the_very_last_delta_of_several_answers_has_the_report():
    decoder, sink = make(FakeDecoder(slots=2)), Sink()
    decoder.submit(request(3, n=2, seed=1, temperature=1.0), sink)
    drain(decoder)
    assert [event.report is not None for event in sink.events] == [False] * 15 + [True]
    assert sink.completion.report.completion_tokens == 16


def test_more_answers_than_slots_are_refused():
    with pytest.raises(OptionError, match="n is 5, but there are 4 slots"):
        make().submit(request(n=5), Sink())


def test_log_probabilities_come_with_every_token():
    decoder, sink = make(), Sink()
    decoder.submit(request(logprobs=2), sink)
    drain(decoder)
    for event in sink.events:
        assert [found.token_id for found in event.logprobs] == list(event.token_ids)
        assert event.logprobs[0].top[0] == (event.token_ids[0], event.logprobs[0].logprob)
        assert len(event.logprobs[0].top) == 2


def test_statistics_count_what_was_done():
    decoder = make(FakeDecoder(slots=2))
    for number in range(3):
        decoder.submit(request(number, tokens=6, max_tokens=5), Sink())
    decoder.step()
    now = decoder.statistics
    assert (now.slots, now.slots_used, now.live_requests, now.queued_answers) == (2, 2, 3, 1)
    drain(decoder)
    totals = decoder.statistics.totals
    assert (totals.prompt_tokens, totals.completion_tokens, totals.prefill_steps) == (18, 15, 6)
    assert totals.decode_steps < 12
