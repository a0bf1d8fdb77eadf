"""What the python-backend models do with a request, without Triton."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from tests.repository.bad_inputs import BAD_INPUTS, EMBEDS, TILES, pictured, prompt
from tests.repository.raw import ints, text
from tests.runtime.decoding import Clock

from vitrail.core import Delta, GenerateOptions, Report, Visual
from vitrail.decoder import Decoder, Settings
from vitrail.errors import Busy, DeadlineExceeded, InvalidInput, ServerError
from vitrail.look import Seen
from vitrail.manifest import load_manifest
from vitrail.providers import Cpu
from vitrail.session.ort import OrtDecoder
from vitrail.tokenizer import load_tokenizer
from vitrail.triton.answering import Answering
from vitrail.triton.arrivals import Arrivals
from vitrail.triton.batched import run_batch
from vitrail.triton.looking import Looking
from vitrail.triton.metering import Unmetered
from vitrail.triton.outbox import Done, Outbox, joined
from vitrail.triton.question import VISION_STARTED, read_abort, read_question

LAST = Delta(finish_reason="stop", report=Report(1, 1))


@pytest.fixture(scope="module")
def artifacts(exported):
    return exported("internvl2-tiny")


@pytest.fixture(scope="module")
def manifest(artifacts):
    return load_manifest(artifacts)


class Sender:
    """Notes what is sent; `gone` or `broken` as a client would be."""

    def __init__(self, *, gone=False, broken=False):
        self.gone, self.broken, self.events, self.polls = gone, broken, [], 0
        self.ended = threading.Event()

    def is_cancelled(self):
        self.polls += 1
        return self.gone

    def deliver(self, event, final):
        self.events.append(event)
        if final:
            self.ended.set()
        if self.broken:
            raise RuntimeError("connection lost")


@pytest.fixture
def outbox():
    outbox = Outbox(lambda sender, event, final: sender.deliver(event, final), poll_interval_s=0.01)
    yield outbox
    outbox.close()


def seen(tiles):
    return Seen(EMBEDS[: len(tiles)], reused_tiles=0)


@pytest.fixture
def answering(artifacts, manifest):
    """Real parts but for the way to the vision models, which `see` replaces."""
    session = OrtDecoder(artifacts, manifest, slots=1, capacity=2000, provider=Cpu(threads=1))
    tokenizer = load_tokenizer(artifacts, manifest.tokenizer)
    decoder = Decoder(session, tokenizer, manifest.tokenizer, Settings(slots=1, queue_limit=1))
    decoder.start()
    made = Answering(
        decoder,
        tokenizer=tokenizer,
        manifest=manifest,
        context_tokens=2000,
        looking=Looking(decoder, see=lambda tiles, *_: seen(tiles), tiles_per_look=1),
        observer=Unmetered(),
    )
    yield made
    made.close()
    decoder.close()


def accept(answering, outbox, tensors, *, timeout_s=None, request_id=""):
    sender = Sender()
    answering.accept(lambda: tensors, outbox.open(sender), request_id=request_id, timeout_s=timeout_s)
    return sender


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_a_bad_input_is_answered_with_its_name_and_nothing_else(answering, outbox, name):
    tensors, words = BAD_INPUTS[name]
    sender = accept(answering, outbox, tensors)
    assert sender.ended.wait(5)
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
    assert sender.ended.wait(5)
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
        assert sender.ended.wait(5)
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
    assert sender.ended.wait(5)
    assert looks == [1]
    assert sender.events[-1].finish_reason == "cancelled"


def test_a_deadline_ends_a_request_between_two_parts_of_its_pictures(answering, outbox):
    looks = []

    def see(tiles, request, remaining_s):
        looks.append(remaining_s)
        time.sleep(0.2)
        return seen(tiles)

    answering._looking._see = see
    question = {"text_input": text("hi"), "tiles": TILES, "options": text('{"n": 1, "deadline_s": 0.1}')}
    sender = accept(answering, outbox, question)
    assert sender.ended.wait(5)
    assert len(looks) == 1
    assert 0 < looks[0] <= 0.1
    (last,) = sender.events
    assert (last.finish_reason, last.text) == ("deadline", "")
    assert last.report.timings.vision_ms >= 100


@pytest.mark.parametrize(("cause", "reason"), [("late", "deadline"), ("abort", "cancelled")])
def test_who_is_looked_at_ends_when_late_or_aborted_not_when_the_look_is_over(
    answering, outbox, cause, reason
):
    gate, began = threading.Event(), threading.Event()
    answering._looking._see = lambda tiles, *_: (began.set(), gate.wait(5)) and seen(tiles)
    question = {"text_input": text("hi"), "tiles": TILES[:1]}
    sender = accept(answering, outbox, question, request_id="me", timeout_s=0.2 if cause == "late" else None)
    assert began.wait(2)
    if cause == "abort":
        accept(answering, outbox, {"abort": text("me")})
    ended = sender.ended.wait(2)
    gate.set()
    assert ended, "it waited for its look"
    (last,) = sender.events
    assert last.finish_reason == reason


def test_what_fails_after_the_deadline_is_late_and_no_failure(answering, outbox):
    def see(tiles, request, remaining_s):
        time.sleep(remaining_s + 0.01)
        raise DeadlineExceeded("the request waited too long in the server's queue")

    answering._looking._see = see
    question = {"text_input": text("hi"), "tiles": TILES, "options": text('{"deadline_s": 0.1}')}
    sender = accept(answering, outbox, question)
    assert sender.ended.wait(5)
    assert sender.events[-1].finish_reason == "deadline"


@pytest.mark.parametrize(("cause", "reason"), [("late", "deadline"), ("abort", "cancelled")])
def test_who_waits_for_vision_ends_there_when_late_or_aborted_and_is_never_looked_at(
    answering, outbox, cause, reason
):
    looks, gate, looking = [], threading.Event(), answering._looking
    looking.limit = 9
    looking._see = lambda tiles, request, _: (looks.append(request.id), gate.wait(5)) and seen(tiles)
    question = {"text_input": text("hi"), "tiles": TILES[:1], "max_tokens": ints(1)}
    for number in range(4):
        accept(answering, outbox, question, request_id=f"busy{number}")
    sender = accept(answering, outbox, question, request_id="me", timeout_s=0.1 if cause == "late" else None)
    if cause == "abort":
        accept(answering, outbox, {"abort": text("me")})
    ended = sender.ended.wait(2)
    gate.set()
    assert ended, "it waited for the others"
    assert sender.events[-1].finish_reason == reason
    assert "me" not in looks


def test_the_more_urgent_are_looked_at_first(answering, outbox):
    gate, looking = threading.Event(), answering._looking
    looking.limit = 9
    looking._see = lambda tiles, *_: gate.wait(5) and seen(tiles)
    question = {"text_input": text("hi"), "tiles": TILES[:1], "max_tokens": ints(1)}
    plain, urgent = ({**question, "options": text(f'{{"priority": {level}}}')} for level in (5, 1))
    senders = [accept(answering, outbox, plain, request_id=f"busy{number}") for number in range(4)]
    wait_for(lambda: len(looking._running) == 4)
    senders += [accept(answering, outbox, plain, request_id=name) for name in ("late", "later")]
    senders.append(accept(answering, outbox, urgent, request_id="urgent"))
    taken = [pending.request.id for pending in looking._waiting]
    gate.set()
    assert all(sender.ended.wait(5) for sender in senders)
    assert taken[0] == "urgent"


def test_waiting_for_vision_counts_in_the_report(answering, outbox):
    looking = answering._looking
    looking.limit = 9
    looking._see = lambda tiles, *_: time.sleep(0.2) or seen(tiles)
    question = {"text_input": text("hi"), "tiles": TILES[:1], "max_tokens": ints(1)}
    senders = [accept(answering, outbox, question) for _ in range(5)]
    assert all(sender.ended.wait(5) for sender in senders)
    reports = [sender.events[-1].report for sender in senders if isinstance(sender.events[-1], Delta)]
    assert max(report.timings.vision_ms for report in reports) >= 300


def test_too_many_pictures_at_once_are_busy(answering, outbox):
    gate = threading.Event()
    answering._looking._see = lambda tiles, *_: gate.wait(5) and seen(tiles)
    question = {"text_input": text("hi"), "tiles": TILES[:1], "max_tokens": ints(1)}
    waiting = [accept(answering, outbox, question) for _ in range(2)]
    refused = accept(answering, outbox, question)
    assert refused.ended.wait(5)
    assert isinstance(refused.events[0], Busy)
    assert "2 requests with tiles are waiting, which is the limit" in str(refused.events[0])
    gate.set()
    assert all(sender.ended.wait(5) for sender in waiting)
    assert all(sender.events[-1].report for sender in waiting)


def test_an_abort_has_no_answer_but_an_end(answering, outbox):
    sender = accept(answering, outbox, {"abort": text("nobody")})
    assert sender.ended.wait(5)
    assert sender.events == [Done()]


def test_a_request_that_announced_itself_has_been_here_since(answering, outbox):
    clock = Clock(50.0)
    answering._arrivals = Arrivals(clock=clock)
    announced = accept(answering, outbox, {"announce": text("me")})
    assert announced.ended.wait(5)
    assert announced.events == [Done()]
    clock.now_s += 3
    question = {"prompt": pictured(2), "image_embeds": EMBEDS, "options": text('{"deadline_s": 2}')}
    late = accept(answering, outbox, question, request_id="me")
    assert late.ended.wait(5)
    assert late.events[-1].finish_reason == "deadline"
    assert late.events[-1].report.timings.vision_ms == 3000
    again = accept(answering, outbox, question, request_id="me")
    assert again.ended.wait(5)
    assert again.events[-1].report.timings.vision_ms == 0


def test_announcements_of_requests_that_never_come_are_forgotten():
    clock = Clock(0.0)
    arrivals = Arrivals(limit=2, clock=clock)
    for name in "abc":
        arrivals.note(name)
        clock.now_s += 1
    assert [arrivals.take_ms(name) for name in "abcc"] == [0, 2000, 1000, 0]


def test_triton_s_timeout_is_the_deadline_unless_the_options_have_one(answering, outbox):
    endless = {"text_input": text("hi"), "options": text('{"ignore_eos": true, "max_tokens": 1500}')}
    late = accept(answering, outbox, endless, timeout_s=0.05)
    assert late.ended.wait(5)
    assert late.events[-1].finish_reason == "deadline"
    own = {
        "text_input": text("hi"),
        "options": text('{"max_tokens": 2, "ignore_eos": true, "deadline_s": 60}'),
    }
    assert (sender := accept(answering, outbox, own, timeout_s=1e-6)).ended.wait(5)
    assert sender.events[-1].finish_reason == "length"


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


def test_the_time_of_vision_counts_from_its_start_and_a_clock_that_was_set_does_not(manifest):
    def vision_ms(started_s):
        tensors = {"prompt": pictured(2), "image_embeds": EMBEDS, VISION_STARTED: np.full((2, 1), started_s)}
        return read_question(tensors, manifest=manifest).vision_ms

    assert 2000 <= vision_ms(time.time() - 2) < 3000
    assert vision_ms(time.time() + 60) == vision_ms(0.0) == vision_ms(np.nan) == 0.0


def test_an_abort_is_known_by_its_input():
    assert read_abort({"text_input": text("hi")}) is None
    assert read_abort({"abort": text("me")}) == "me"


def test_events_arrive_in_order_and_none_after_the_last(outbox):
    sender = Sender()
    reply = outbox.open(sender)
    for event in (Delta(text="a"), Delta(1, text="b"), LAST, Delta(text="late")):
        reply.send(event)
    outbox.close()
    assert sender.events == [Delta(text="a"), Delta(1, text="b"), LAST]


def test_deltas_that_wait_are_sent_as_one(outbox):
    slow, sender, began = threading.Event(), Sender(), threading.Event()
    slow_sender = Sender()
    slow_sender.deliver = lambda event, final: (began.set(), slow.wait(5))
    outbox.open(slow_sender).send(LAST)
    assert began.wait(5)
    reply = outbox.open(sender)
    for token, word in enumerate("abc"):
        reply.send(Delta(text=word, token_ids=(token,)))
    reply.send(Delta(1, text="other"))
    reply.send(LAST)
    slow.set()
    assert sender.ended.wait(5)
    assert sender.events == [Delta(text="abc", token_ids=(0, 1, 2)), Delta(1, text="other"), LAST]


def test_what_follows_a_delta_too_soon_waits_for_its_turn_or_the_end(outbox, monkeypatch):
    monkeypatch.setattr("vitrail.triton.outbox.SEND_INTERVAL_S", 60.0)
    ended, cut = Sender(), Sender()
    replies = [outbox.open(sender) for sender in (ended, cut)]
    for reply, sender in zip(replies, (ended, cut), strict=True):
        reply.send(Delta(text="a"))
        wait_for(lambda sender=sender: sender.events)
        for word in "bc":
            reply.send(Delta(text=word))
    replies[0].send(LAST)
    assert ended.ended.wait(5)
    assert ended.events == [Delta(text="a"), replace(LAST, text="bc" + LAST.text)]
    assert cut.events == [Delta(text="a")]
    outbox.close()
    assert cut.events == [Delta(text="a"), Delta(text="bc")]


def wait_for(condition):
    deadline_s = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


def test_joined_deltas_end_as_the_last_of_them_and_errors_stay_apart():
    error = ServerError("x")
    assert joined([Delta(text="a", token_ids=(1,)), replace(LAST, text="b", token_ids=(2,))]) == [
        replace(LAST, text="ab", token_ids=(1, 2))
    ]
    assert joined([Delta(text="a"), error]) == [Delta(text="a"), error]
    assert joined([LAST, Delta(text="late")]) == [LAST, Delta(text="late")]


def test_a_client_is_asked_for_until_its_last_event(outbox):
    sender = Sender()
    reply = outbox.open(sender)
    assert not reply.cancelled()
    sender.gone = True
    deadline_s = time.monotonic() + 5
    while not reply.cancelled():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
    other = Sender()
    outbox.open(other).send(LAST)
    assert other.ended.wait(5)
    polls = other.polls
    time.sleep(0.1)
    assert other.polls <= polls + 1


def test_a_sender_that_breaks_is_a_client_that_is_gone_and_harms_no_other(outbox):
    broken, well = Sender(broken=True), Sender()
    reply = outbox.open(broken)
    reply.send(Delta(text="a"))
    outbox.open(well).send(LAST)
    assert well.ended.wait(5)
    assert reply.cancelled()


def test_a_client_is_asked_for_even_while_events_never_pause(outbox):
    sender = Sender()
    reply, deadline_s = outbox.open(sender), time.monotonic() + 5
    while sender.polls < 2:
        assert time.monotonic() < deadline_s
        reply.send(Delta(text="a"))


def double(array):
    if (array < 0).any():
        raise ValueError("negative")
    return array * 2


def refuse_threes(array):
    if len(array) == 3:
        raise InvalidInput("three")


def test_rows_of_all_requests_run_at_once_and_return_to_their_own():
    runs = []
    parts = [np.arange(2), np.arange(3), np.arange(4, 8), np.zeros(0, int)]
    results = run_batch(
        parts, check=refuse_threes, run=lambda array: runs.append(len(array)) or double(array)
    )
    assert runs == [6]
    assert str(results[1]) == "three"
    assert [list(result) for index, result in enumerate(results) if index != 1] == [
        [0, 2],
        [8, 10, 12, 14],
        [],
    ]


def test_a_run_that_fails_is_run_again_alone_and_only_the_guilty_fail():
    results = run_batch([np.arange(2), np.array([-1]), np.arange(4)], check=refuse_threes, run=double)
    assert list(results[0]) == [0, 2]
    assert isinstance(results[1], ServerError)
    assert "negative" not in str(results[1])
    assert list(results[2]) == [0, 2, 4, 6]
