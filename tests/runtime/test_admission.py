"""Which requests the decoder takes, and in which order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.runtime.decoding import (
    CONTRACT,
    Sink,
    answers,
    drain,
    idle,
    make,
    request,
    solo,
)

from vitrail.core import GenerateOptions
from vitrail.decoder import Decoder, Settings
from vitrail.errors import Busy, InvalidInput, OptionError, PromptTooLong
from vitrail.session.fake import ByteTokenizer, FakeDecoder


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (request(tokens=60, max_tokens=4), "60 tokens and max_tokens is 4.*room for 63"),
        (request(tokens=2, max_tokens=10**9), "max_tokens is 1000000000.*room for 63.*lower"),
        (request(tokens=63, max_tokens=None), "63 tokens, but.*room for 63"),
    ],
)
def test_a_request_beyond_the_context_is_refused_with_value_limit_and_cure(asked, message):
    with pytest.raises(PromptTooLong, match=message):
        make().submit(asked, Sink())


def test_without_max_tokens_an_answer_takes_what_the_context_leaves():
    assert len(solo(request(tokens=50, max_tokens=None)).choices[0].token_ids) == 13
    wide = Decoder(FakeDecoder(capacity=4000), ByteTokenizer(), CONTRACT)
    assert wide.answer_limit(50, GenerateOptions()) == 1024


GOOD = request(tokens=9, tiles=2)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (replace(GOOD, image_embeds=None), "0 image embeds for 4"),
        (replace(GOOD, image_embeds=GOOD.image_embeds[:1]), "2 image embeds for 4"),
        (replace(GOOD, image_embeds=np.zeros((2, 2, 9), np.float32)), r"\[2, 2, 9\].*8 wide"),
        (replace(GOOD, image_embeds=np.zeros((2, 2, 8), np.int32)), "int32"),
        (replace(GOOD, image_embeds=np.full((2, 2, 8), np.nan, np.float32)), "NaN"),
        (replace(request(), image_embeds=GOOD.image_embeds), "4 image embeds for 0"),
        (replace(GOOD, token_ids=np.zeros(0, np.int32)), r"\[0\]"),
        (replace(GOOD, token_ids=np.zeros((1, 3), np.int32)), r"\[1, 3\]"),
        (replace(GOOD, token_ids=np.zeros(3, np.float32)), "float32"),
        (replace(GOOD, token_ids=-GOOD.token_ids), "negative"),
        (replace(GOOD, vision_ms=float("nan")), "vision_ms is nan"),
        (replace(GOOD, preprocess_ms=-1.0), "preprocess_ms is -1"),
    ],
)
def test_a_request_that_the_model_cannot_take_is_refused(asked, message):
    decoder = make()
    with pytest.raises(InvalidInput, match=message):
        decoder.submit(asked, Sink())
    assert idle(decoder)


def test_a_request_id_is_refused_while_it_is_in_use_and_welcome_after():
    decoder = make()
    decoder.submit(request(1), Sink())
    with pytest.raises(InvalidInput, match="'r1'"):
        decoder.submit(request(1), Sink())
    drain(decoder)
    decoder.submit(request(1), Sink())


def test_a_full_queue_is_busy_and_says_its_limit():
    decoder = make(FakeDecoder(slots=1), queue_limit=2)
    for number in range(3):
        decoder.submit(request(number), Sink())
    with pytest.raises(Busy, match=r"2 answers wait.*limit of 2"):
        decoder.submit(request(3), Sink())
    decoder.step()
    with pytest.raises(Busy):
        decoder.submit(request(3), Sink())
    drain(decoder)
    decoder.submit(request(3), Sink())


def test_requests_are_admitted_in_the_order_they_came():
    order: list[int] = []
    decoder = make(FakeDecoder(slots=1))
    for number in range(5):
        decoder.submit(request(number), lambda event, n=number: order.append(n))
    drain(decoder)
    assert order == sorted(order)


def order_of(decoder, *asked):
    """In which order these requests begin to be answered."""
    order: list[str] = []
    for one in asked:
        decoder.submit(one, lambda event, name=one.id: order.append(name))
    drain(decoder)
    return list(dict.fromkeys(order))


def test_users_take_turns():
    many = [request(number, user="many") for number in range(6)]
    one = request(9, user="one")
    order = order_of(make(FakeDecoder(slots=1)), *many, one)
    assert order.index("r9") <= 1
    assert [name for name in order if name != "r9"] == [asked.id for asked in many]


def test_the_more_urgent_begin_first_and_their_priority_changes_no_answer():
    asked = [request(number, priority=9 - number) for number in range(4)]
    assert order_of(make(FakeDecoder(slots=1)), *asked) == ["r3", "r2", "r1", "r0"]
    assert [answers(solo(one)) for one in asked] == [answers(solo(request(n))) for n in range(4)]


def test_in_a_full_queue_the_user_who_has_most_waiting_gives_way():
    decoder, sinks = make(FakeDecoder(slots=1), queue_limit=3), [Sink() for _ in range(5)]
    for number in range(4):
        decoder.submit(request(number, user="many"), sinks[number])
    decoder.submit(request(4, user="one"), sinks[4])
    with pytest.raises(Busy):
        decoder.submit(request(5, user="many"), Sink())
    drain(decoder)
    assert [type(sink.events[-1]) for sink in sinks].index(Busy) == 3
    assert [sink.finals for sink in sinks] == [1] * 5
    assert idle(decoder)


def test_in_a_full_queue_the_least_urgent_gives_way_if_that_makes_room():
    decoder, low, urgent = make(FakeDecoder(slots=2), queue_limit=1), Sink(), Sink()
    for number in range(2):
        decoder.submit(request(number), Sink())
    decoder.submit(request(2, priority=9), low)
    with pytest.raises(Busy, match="2 more would exceed"):
        decoder.submit(request(3, n=2, priority=0), Sink())
    decoder.submit(request(4, priority=0), urgent)
    drain(decoder)
    assert isinstance(low.events[-1], Busy)
    assert urgent.reason == "length"


def test_a_request_that_is_being_answered_never_gives_way():
    decoder, running = make(FakeDecoder(slots=1), queue_limit=0), Sink()
    decoder.submit(request(0, priority=9), running)
    decoder.step()
    with pytest.raises(Busy):
        decoder.submit(request(1, priority=0), Sink())
    drain(decoder)
    assert running.reason == "length"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"slots": 0}, "slots is 0; it must be at least 1"),
        ({"slots": "2"}, "slots is '2'; it must be an integer"),
        ({"slots": None}, "slots is None; it must be an integer"),
        ({"default_deadline_s": None}, "default_deadline_s is None; it must be a number"),
        ({"prefix_cache": "no"}, "prefix_cache is 'no'; it must be True or False"),
        ({"context_tokens": 64.0}, r"context_tokens is 64\.0; it must be an integer"),
        ({"tpot_slowdown": True}, "tpot_slowdown is True; it must be a number"),
        ({"prefill_chunk": 0}, "prefill_chunk is 0"),
        ({"queue_limit": -1}, "queue_limit is -1"),
        ({"context_tokens": 1}, "context_tokens is 1"),
        ({"default_deadline_s": float("nan")}, "default_deadline_s is nan"),
        ({"default_deadline_s": 0}, "default_deadline_s is 0, which ends every request at once"),
        ({"default_deadline_s": 604_801}, "default_deadline_s is 604801; it must be at most 604800"),
        ({"tpot_slowdown": 1.0}, "tpot_slowdown is 1.0; it must be at least 1.1"),
        ({"tpot_target_ms": -1}, "tpot_target_ms is -1; it must be at least 0"),
        ({"tpot_target_ms": 0}, "tpot_target_ms is 0, which no machine reaches"),
    ],
)
def test_settings_outside_their_range_are_refused(settings, message):
    with pytest.raises(OptionError, match=message):
        Settings(**settings)


def test_a_slot_has_the_exports_context_up_to_8192_tokens_unless_told_otherwise():
    assert [Settings().capacity(limit) for limit in (4096, 32768)] == [4096, 8192]
    assert Settings(context_tokens=16384).capacity(32768) == 16384
    with pytest.raises(OptionError, match="context_tokens is 16384, but this export reaches 8192"):
        Settings(context_tokens=16384).capacity(8192)
