"""What the decoder's adapter does with a request, without Triton."""

import threading
import time
from types import SimpleNamespace

import pytest
from tests.repository.adapters.sending import Sender, accept, seen, wait_for
from tests.repository.bad_inputs import BAD_INPUTS, EMBEDS, TILES, pictured
from tests.repository.raw import ints, text
from tests.runtime.decoding import Clock

from vitrail.errors import Busy, DeadlineExceeded, InvalidInput, ServerError
from vitrail.triton.arrivals import Arrivals
from vitrail.triton.outbox import Done


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_a_bad_input_is_answered_with_its_name_and_nothing_else(answering, outbox, name):
    tensors, words = BAD_INPUTS[name]
    sender = accept(answering, outbox, tensors)
    assert sender.ended.wait(60)
    (error,) = sender.events
    assert isinstance(error, InvalidInput)
    assert words in f"[{error.code}] {error}"
    assert len(str(error)) < 1000


def test_a_question_with_tiles_is_seen_in_parts_and_answered(answering, outbox):
    looks = []
    answering._looking._see = lambda tiles, request, _: looks.append((len(tiles), request.id)) or seen(tiles)
    sender = accept(
        answering, outbox, {"text_input": text("hi"), "tiles": TILES, "max_tokens": ints(3)}, request_id="me"
    )
    assert sender.ended.wait(60)
    assert looks == [(1, "me"), (1, "me")]
    assert sender.events[-1].report.completion_tokens <= 3
    assert sender.events[-1].report.timings.vision_ms > 0


def test_what_the_vision_models_answer_reaches_the_client_and_what_they_raise_does_not(answering, outbox):
    question = {"text_input": text("hi"), "tiles": TILES}

    def fails(error):
        def see(tiles, request, remaining_s):
            raise error

        answering._looking._see = see
        sender = accept(answering, outbox, question)
        assert sender.ended.wait(60)
        return sender.events

    assert [str(event) for event in fails(Busy("the vision encoder's queue is full"))] == [
        "the vision encoder's queue is full"
    ]
    (event,) = fails(ValueError("/secret/path"))
    assert isinstance(event, ServerError)
    assert "secret" not in str(event)


def test_a_client_that_leaves_while_its_pictures_are_seen_ends_it_there(answering, outbox):
    looks, sender = [], Sender()

    def see(tiles, request, remaining_s):
        looks.append(len(tiles))
        sender.gone = True
        polls = sender.polls
        while sender.polls == polls:
            time.sleep(0.005)
        return seen(tiles)

    answering._looking._see = see
    question = {"text_input": text("hi"), "tiles": TILES}
    answering.accept(lambda: question, outbox.open(sender), request_id="", timeout_s=None)
    assert sender.ended.wait(60)
    assert looks == [1]
    assert sender.events[-1].finish_reason == "cancelled"


@pytest.fixture
def clock(monkeypatch):
    """What the time that pictures wait is measured by."""
    clock = Clock()
    for module in ("vitrail.look", "vitrail.triton.answering"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(monotonic=clock))
    return clock


def test_a_deadline_ends_a_request_between_two_parts_of_its_pictures(answering, outbox, clock):
    looks = []

    def see(tiles, request, remaining_s):
        looks.append(remaining_s)
        clock.now_s += 0.2
        return seen(tiles)

    answering._looking._see = see
    question = {"text_input": text("hi"), "tiles": TILES, "options": text('{"n": 1, "deadline_s": 0.1}')}
    sender = accept(answering, outbox, question)
    assert sender.ended.wait(60)
    assert looks == [0.1]
    (last,) = sender.events
    assert (last.finish_reason, last.text) == ("deadline", "")
    assert last.report.timings.vision_ms == pytest.approx(200)


@pytest.mark.parametrize(("cause", "reason"), [("late", "deadline"), ("abort", "cancelled")])
def test_who_is_looked_at_ends_when_late_or_aborted_not_when_the_look_is_over(
    answering, outbox, clock, cause, reason
):
    gate, began = threading.Event(), threading.Event()
    answering._looking._see = lambda tiles, *_: (began.set(), gate.wait(60)) and seen(tiles)
    question = {"text_input": text("hi"), "tiles": TILES[:1]}
    sender = accept(answering, outbox, question, request_id="me", timeout_s=0.2 if cause == "late" else None)
    assert began.wait(60)
    clock.now_s += 1
    if cause == "abort":
        accept(answering, outbox, {"abort": text("me")})
    ended = sender.ended.wait(30)
    gate.set()
    assert ended, "it waited for its look"
    (last,) = sender.events
    assert last.finish_reason == reason


def test_what_fails_after_the_deadline_is_late_and_no_failure(answering, outbox, clock):
    def see(tiles, request, remaining_s):
        clock.now_s += remaining_s + 0.01
        raise DeadlineExceeded("the request waited too long in the server's queue")

    answering._looking._see = see
    question = {"text_input": text("hi"), "tiles": TILES, "options": text('{"deadline_s": 0.1}')}
    sender = accept(answering, outbox, question)
    assert sender.ended.wait(60)
    assert sender.events[-1].finish_reason == "deadline"


@pytest.mark.parametrize(("cause", "reason"), [("late", "deadline"), ("abort", "cancelled")])
def test_who_waits_for_vision_ends_there_when_late_or_aborted_and_is_never_looked_at(
    answering, outbox, clock, cause, reason
):
    looks, gate, looking = [], threading.Event(), answering._looking
    looking.limit = 9
    looking._see = lambda tiles, request, _: (looks.append(request.id), gate.wait(60)) and seen(tiles)
    question = {"text_input": text("hi"), "tiles": TILES[:1], "max_tokens": ints(1)}
    for number in range(4):
        accept(answering, outbox, question, request_id=f"busy{number}")
    wait_for(lambda: len(looking._running) == looking._pool._max_workers)
    sender = accept(answering, outbox, question, request_id="me", timeout_s=0.1 if cause == "late" else None)
    clock.now_s += 1
    if cause == "abort":
        accept(answering, outbox, {"abort": text("me")})
    ended = sender.ended.wait(30)
    gate.set()
    assert ended, "it waited for the others"
    assert sender.events[-1].finish_reason == reason
    assert "me" not in looks


def test_the_more_urgent_are_looked_at_first(answering, outbox):
    gate, looking = threading.Event(), answering._looking
    looking.limit = 9
    looking._see = lambda tiles, *_: gate.wait(60) and seen(tiles)
    question = {"text_input": text("hi"), "tiles": TILES[:1], "max_tokens": ints(1)}
    plain, urgent = ({**question, "options": text(f'{{"priority": {level}}}')} for level in (5, 1))
    senders = [accept(answering, outbox, plain, request_id=f"busy{number}") for number in range(4)]
    wait_for(lambda: len(looking._running) == looking._pool._max_workers)
    senders += [accept(answering, outbox, plain, request_id=name) for name in ("late", "later")]
    senders.append(accept(answering, outbox, urgent, request_id="urgent"))
    taken = [pending.request.id for pending in looking._waiting]
    gate.set()
    assert all(sender.ended.wait(60) for sender in senders)
    assert taken[0] == "urgent"


def test_waiting_for_vision_counts_in_the_report(answering, outbox):
    looking, gate = answering._looking, threading.Event()
    looking.limit = answering._decoder._admission.queue_limit = 9
    looking._see = lambda tiles, *_: gate.wait(60) and (time.sleep(0.2) or seen(tiles))
    question = {"text_input": text("hi"), "tiles": TILES[:1], "max_tokens": ints(1)}
    senders = [accept(answering, outbox, question) for _ in range(5)]  # more than are looked at at once
    gate.set()
    assert all(sender.ended.wait(60) for sender in senders)
    reports = [sender.events[-1].report for sender in senders]
    assert max(report.timings.vision_ms for report in reports) >= 300


def test_too_many_pictures_at_once_are_busy(answering, outbox):
    gate = threading.Event()
    answering._looking._see = lambda tiles, *_: gate.wait(60) and seen(tiles)
    question = {"text_input": text("hi"), "tiles": TILES[:1], "max_tokens": ints(1)}
    waiting = [accept(answering, outbox, question) for _ in range(2)]
    refused = accept(answering, outbox, question)
    assert refused.ended.wait(60)
    assert isinstance(refused.events[0], Busy)
    assert "2 requests with tiles are waiting, which is the limit" in str(refused.events[0])
    gate.set()
    assert all(sender.ended.wait(60) for sender in waiting)
    assert all(sender.events[-1].report for sender in waiting)


def test_an_abort_has_no_answer_but_an_end(answering, outbox):
    sender = accept(answering, outbox, {"abort": text("nobody")})
    assert sender.ended.wait(60)
    assert sender.events == [Done()]


def test_a_request_that_announced_itself_has_been_here_since(answering, outbox):
    clock = Clock(50.0)
    answering._arrivals = Arrivals(clock=clock)
    announced = accept(answering, outbox, {"announce": text("me")})
    assert announced.ended.wait(60)
    assert announced.events == [Done()]
    clock.now_s += 3
    question = {"prompt": pictured(2), "image_embeds": EMBEDS, "options": text('{"deadline_s": 2}')}
    late = accept(answering, outbox, question, request_id="me")
    assert late.ended.wait(60)
    assert late.events[-1].finish_reason == "deadline"
    assert late.events[-1].report.timings.vision_ms == 3000
    again = accept(answering, outbox, question, request_id="me")
    assert again.ended.wait(60)
    assert again.events[-1].report.timings.vision_ms == 0


def test_triton_s_timeout_is_the_deadline_unless_the_options_have_one(answering, outbox):
    endless = {"text_input": text("hi"), "options": text('{"ignore_eos": true, "max_tokens": 1500}')}
    late = accept(answering, outbox, endless, timeout_s=0.05)
    assert late.ended.wait(60)
    assert late.events[-1].finish_reason == "deadline"
    own = {
        "text_input": text("hi"),
        "options": text('{"max_tokens": 2, "ignore_eos": true, "deadline_s": 60}'),
    }
    assert (sender := accept(answering, outbox, own, timeout_s=1e-6)).ended.wait(60)
    assert sender.events[-1].finish_reason == "length"
