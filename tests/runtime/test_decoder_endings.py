"""How requests end: cancelled, late, failed, closed; each exactly once, and none disturbs another."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from tests.runtime.decoding import (
    MIXED,
    Clock,
    Sink,
    answers,
    drain,
    idle,
    make,
    request,
    solo,
)

from vitrail.core import Delta
from vitrail.decoder import Decoder, Request
from vitrail.errors import Busy, ServerError, VitrailError
from vitrail.session.fake import FakeDecoder


def until(decoder: Decoder, phase: str, sink: Sink, neighbour: Sink) -> None:
    """Bring request r1 of a one-slot decoder, behind r0, into a phase."""
    decoder.submit(request(0), neighbour)
    decoder.submit(request(1, tokens=14), sink)
    decoder.step()
    while phase != "queue" and not neighbour.finals:
        decoder.step()
    for _ in range({"queue": 0, "prefill": 1, "decode": 5}[phase]):
        decoder.step()


@pytest.mark.parametrize(("phase", "tokens"), [("queue", 0), ("prefill", 0), ("decode", 3)])
@pytest.mark.parametrize("cause", ["abort", "gone", "deadline"])
def test_cancel_and_deadline_end_a_request_in_every_phase_and_keep_its_answer(phase, tokens, cause):
    clock, sink, neighbour, gone = Clock(), Sink(), Sink(), []
    decoder = make(FakeDecoder(slots=1), clock=clock)
    late = {"deadline_s": 50.0} if cause == "deadline" else {}
    submit = decoder.submit
    decoder.submit = lambda asked, s: submit(
        replace(
            asked,
            cancelled=(lambda: bool(gone)) if asked.id == "r1" else None,
            options=replace(asked.options, **(late if asked.id == "r1" else {})),
        ),
        s,
    )
    until(decoder, phase, sink, neighbour)
    if cause == "abort":
        assert decoder.abort("r1")
    elif cause == "gone":
        gone.append(True)
    else:
        clock.now_s += 50
    before = len(sink.events)
    decoder.step()
    assert len(sink.events) == before + 1
    completion = sink.completion
    assert completion.finish_reason == ("deadline" if cause == "deadline" else "cancelled")
    assert completion.choices[0].token_ids == solo(request(1, tokens=14)).choices[0].token_ids[:tokens]
    assert completion.report.completion_tokens == tokens
    drain(decoder)
    assert answers(neighbour.completion) == answers(solo(request(0)))
    assert idle(decoder)


def test_cancelling_several_answers_ends_each_and_then_the_request():
    decoder, sink = make(FakeDecoder(slots=2)), Sink()
    decoder.submit(request(0, tokens=3), Sink())
    decoder.submit(request(1, tokens=3, n=2, seed=0), sink)
    for _ in range(4):
        decoder.step()
    decoder.abort("r1")
    decoder.step()
    assert {choice.finish_reason for choice in sink.completion.choices} == {"cancelled"}
    assert len(sink.completion.choices) == 2


@pytest.mark.parametrize(("tiles", "soon_s", "late_s"), [(0, 4, 6), (2, 100, 121)])
def test_a_cancel_that_overtakes_its_request_counts_for_a_while_longer_with_pictures(tiles, soon_s, late_s):
    for wait_s, reason in ((0, "cancelled"), (soon_s, "cancelled"), (late_s, "length")):
        clock, sink = Clock(), Sink()
        decoder = make(clock=clock)
        assert not decoder.abort("r1")
        clock.now_s += wait_s
        decoder.submit(request(1, tokens=9, tiles=tiles), sink)
        drain(decoder)
        assert sink.reason == reason


def test_a_cancel_that_comes_after_the_answer_does_not_reach_the_next_request_of_that_id():
    decoder, sink = make(), Sink()
    decoder.submit(request(1), Sink())
    drain(decoder)
    assert not decoder.abort("r1")
    decoder.submit(request(1), sink)
    drain(decoder)
    assert sink.reason == "length"


def test_time_spent_before_submission_counts_in_the_report_and_against_the_deadline():
    clock, sink, late = Clock(), Sink(), Sink()
    decoder = make(clock=clock, default_deadline_s=1.0)
    decoder.submit(replace(request(1), preprocess_ms=100.0, vision_ms=200.0), sink)
    decoder.submit(replace(request(2), vision_ms=1001.0), late)
    clock.now_s += 0.25
    drain(decoder)
    timings = sink.completion.report.timings
    assert (timings.preprocess_ms, timings.vision_ms) == (100, 200)
    assert timings.queue_ms == pytest.approx(250)
    assert timings.ttft_ms == timings.total_ms == pytest.approx(550)
    assert late.reason == "deadline"
    assert late.completion.report.timings.ttft_ms == 0


def test_a_report_counts_the_prompt_and_the_answer():
    report = solo(request(1, tokens=11, tiles=2, max_tokens=3)).report
    assert (report.prompt_tokens, report.completion_tokens) == (11, 3)


def test_a_sink_that_raises_ends_its_request_only():
    decoder, good = make(), Sink()
    calls = []

    def bad(event):
        calls.append(event)
        raise ValueError("closed pipe")

    decoder.submit(request(1), bad)
    decoder.submit(request(2), good)
    drain(decoder)
    assert len(calls) == 1
    assert answers(good.completion) == answers(solo(request(2)))
    assert idle(decoder)


class Failing(FakeDecoder):
    """Fails on every step in which the row that began with `poison` takes part."""

    def __init__(self, poison: Request, *, phase: str) -> None:
        super().__init__()
        self.poison, self.phase = self.table[poison.token_ids[0]], phase

    def forward(self, step):
        if (step.inputs_embeds.shape[1] == 1) == (self.phase == "decode"):
            firsts = self.cache[step.first_slot : step.first_slot + len(step.past_lengths), 0]
            firsts = firsts if self.phase == "decode" else step.inputs_embeds[:, 0]
            if (firsts == self.poison).all(-1).any():
                raise RuntimeError("secret path /opt/model")
        return super().forward(step)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_forward_pass_that_fails_ends_the_requests_that_fail_alone(phase):
    decoder, sinks = make(Failing(MIXED[2], phase=phase)), [Sink() for _ in MIXED]
    for asked, sink in zip(MIXED, sinks, strict=True):
        decoder.submit(asked, sink)
    drain(decoder)
    (error,) = (event for event in sinks[2].events if isinstance(event, VitrailError))
    assert isinstance(error, ServerError)
    assert "secret" not in str(error)
    assert sinks[2].finals == 1
    others = [n for n in range(len(MIXED)) if n != 2]
    assert [answers(sinks[n].completion) for n in others] == [answers(solo(MIXED[n])) for n in others]
    assert idle(decoder)


def test_logits_that_are_not_finite_end_their_request_only():
    session = FakeDecoder()
    session.table[7] = np.nan
    decoder, sinks = make(session), [Sink(), Sink()]
    decoder.submit(replace(request(1), token_ids=np.array([3, 7, 5], np.int32)), sinks[0])
    decoder.submit(replace(request(2), token_ids=np.array([3, 6, 5], np.int32)), sinks[1])
    drain(decoder)
    assert isinstance(sinks[0].events[-1], ServerError)
    assert sinks[1].reason == "length"


def test_a_request_that_cannot_begin_ends_alone_and_leaves_its_slot():
    decoder, sinks = make(FakeDecoder(slots=1)), [Sink(), Sink()]
    decoder.submit(request(1, seed=-5), sinks[0])
    decoder.submit(request(2), sinks[1])
    drain(decoder)
    assert [type(event) for event in sinks[0].events] == [ServerError]
    assert sinks[1].reason == "length"
    assert idle(decoder)


def test_a_cancel_question_that_raises_ends_its_request_only():
    decoder, sinks = make(), [Sink(), Sink()]
    decoder.submit(replace(request(1), cancelled=lambda: 1 / 0), sinks[0])
    decoder.submit(request(2), sinks[1])
    drain(decoder)
    assert isinstance(sinks[0].events[-1], ServerError)
    assert sinks[1].reason == "length"


@pytest.mark.parametrize("seed", range(5))
def test_a_hundred_requests_coming_and_going_end_exactly_once_each_and_free_every_slot(seed):
    chance = random.Random(seed)
    decoder, sinks, refused = make(FakeDecoder(slots=3), queue_limit=12), {}, 0
    for number in range(100):
        asked = request(
            number,
            tokens=chance.randint(5, 30),
            tiles=chance.randint(0, 2),
            max_tokens=chance.randint(1, 12),
            n=chance.randint(1, 3),
            ignore_eos=chance.random() > 0.5,
            deadline_s=1e-9 if chance.random() < 0.1 else None,
        )
        try:
            decoder.submit(asked, sinks.setdefault(asked.id, Sink()))
        except Busy:
            del sinks[asked.id]
            refused += 1
        for _ in range(chance.randint(0, 12)):
            decoder.step()
        if chance.random() < 0.3:
            decoder.abort(f"r{chance.randint(0, number)}")
    drain(decoder)
    assert refused < 60
    assert [sink.finals for sink in sinks.values()] == [1] * len(sinks)
    assert {choice.finish_reason for sink in sinks.values() for choice in sink.completion.choices} >= {
        "length",
        "cancelled",
        "deadline",
    }
    for name, sink in sinks.items():
        assert isinstance(sink.events[-1], Delta), name
        assert sink.events[-1].report is not None
    assert idle(decoder)


def wait_for(condition, timeout_s: float = 60.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.002)


def test_its_own_thread_answers_requests_of_many_threads():
    decoder = make(queue_limit=100)
    decoder.start()
    sinks = [[Sink() for _ in range(5)] for _ in range(6)]

    def ask(number: int) -> None:
        for place, sink in enumerate(sinks[number]):
            decoder.submit(replace(MIXED[number], id=f"{number}-{place}"), sink)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    wait_for(lambda: all(sink.finals for row in sinks for sink in row))
    for number, row in enumerate(sinks):
        assert {str(answers(sink.completion)) for sink in row} == {str(answers(solo(MIXED[number])))}
    decoder.close()
    assert idle(decoder)


def test_close_ends_the_live_and_the_waiting_with_an_error_and_lets_nobody_in():
    decoder, sinks = make(FakeDecoder(slots=1)), [Sink(), Sink()]
    for number, sink in enumerate(sinks):
        decoder.submit(request(number), sink)
    decoder.step()
    decoder.close()
    assert all(isinstance(sink.events[-1], ServerError) and sink.finals == 1 for sink in sinks)
    assert idle(decoder)
    with pytest.raises(ServerError, match="the server is shutting down"):
        decoder.submit(request(5), Sink())


def test_close_is_bounded_while_a_forward_pass_hangs_and_nothing_follows_the_error():
    hang, entered, sink = threading.Event(), threading.Event(), Sink()

    class Hanging(FakeDecoder):
        def forward(self, step):
            entered.set()
            hang.wait(60)
            return super().forward(step)

    decoder = make(Hanging())
    decoder.start()
    decoder.submit(request(1, tokens=3), sink)
    assert entered.wait(60)
    decoder.close(timeout_s=0.2)
    assert decoder._thread.is_alive(), "it waited for the forward pass"
    assert [type(event) for event in sink.events] == [ServerError]
    hang.set()
    wait_for(lambda: not decoder._thread.is_alive())
    assert len(sink.events) == 1


def test_the_thread_survives_a_step_that_breaks():
    class Broken(FakeDecoder):
        broken = True

        def forward(self, step):
            logits = super().forward(step)
            return logits[:0] if self.broken else logits

    session, first, second = Broken(), Sink(), Sink()
    decoder = make(session)
    decoder.start()
    decoder.submit(request(1, tokens=3), first)
    wait_for(lambda: first.finals)
    session.broken = False
    decoder.submit(request(2), second)
    wait_for(lambda: second.finals)
    assert isinstance(first.events[-1], ServerError)
    assert second.reason == "length"
    decoder.close()
