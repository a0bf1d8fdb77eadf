"""What is sent to a client: in order, joined where it comes fast, and to nobody who is gone."""

import threading
import time
from dataclasses import replace

from tests.repository.adapters.sending import LAST, Sender, wait_for

from vitrail.core import Delta
from vitrail.errors import ServerError
from vitrail.triton.outbox import joined


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
    slow_sender.deliver = lambda event, final: (began.set(), slow.wait(60))
    outbox.open(slow_sender).send(LAST)
    assert began.wait(60)
    reply = outbox.open(sender)
    for token, word in enumerate("abc"):
        reply.send(Delta(text=word, token_ids=(token,)))
    reply.send(Delta(1, text="other"))
    reply.send(LAST)
    slow.set()
    assert sender.ended.wait(60)
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
    assert ended.ended.wait(60)
    assert ended.events == [Delta(text="a"), replace(LAST, text="bc" + LAST.text)]
    assert cut.events == [Delta(text="a")]
    outbox.close()
    assert cut.events == [Delta(text="a"), Delta(text="bc")]


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
    deadline_s = time.monotonic() + 60
    while not reply.cancelled():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
    other = Sender()
    outbox.open(other).send(LAST)
    assert other.ended.wait(60)
    polls = other.polls
    time.sleep(0.1)
    assert other.polls <= polls + 1


def test_a_sender_that_breaks_is_a_client_that_is_gone_and_harms_no_other(outbox):
    broken, well = Sender(broken=True), Sender()
    reply = outbox.open(broken)
    reply.send(Delta(text="a"))
    outbox.open(well).send(LAST)
    assert well.ended.wait(60)
    assert reply.cancelled()


def test_a_client_is_asked_for_even_while_events_never_pause(outbox):
    sender = Sender()
    reply, deadline_s = outbox.open(sender), time.monotonic() + 60
    while sender.polls < 2:
        assert time.monotonic() < deadline_s
        reply.send(Delta(text="a"))
