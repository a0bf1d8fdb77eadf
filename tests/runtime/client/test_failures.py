"""What a client makes of servers that are busy, absent, foreign or broken."""

from __future__ import annotations

import json
import socket
import time
from collections import deque
from contextlib import suppress

import grpc
import pytest

from vitrail.client.failure import Backoff, error_from_rpc, is_transient
from vitrail.client.fake import ANSWER, CONTRACT, FakeServer, message
from vitrail.core import Delta
from vitrail.errors import Busy, ImageError, OptionError, PromptTooLong, ServerError

BUSY = ["[busy] the queue is full"]


@pytest.fixture
def quiet_port():
    """One where nobody listens, kept from others: a gRPC server may share it, since both allow that."""
    with socket.socket() as kept:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        kept.bind(("127.0.0.1", 0))
        yield kept.getsockname()[1]


def test_the_server_s_errors_keep_their_kind(kind):
    answers = ["[prompt_too_long] 900 tokens"], ["in ensemble 'internvl', [request id: 7] [image] bad"]
    with FakeServer(*answers) as server, kind(server.url) as client:
        with pytest.raises(PromptTooLong, match=r"^900 tokens$"):
            client.chat("hi")
        with pytest.raises(ImageError, match=r"^bad$"):
            client.chat("hi")


def test_busy_is_tried_again_with_a_new_id(kind):
    with FakeServer(BUSY, ANSWER) as server, kind(server.url) as client:
        assert client.chat("hi").text == "Hello there"
    assert len({request.id for request in server.requests}) == 2


def test_tries_are_used_up(kind):
    with (
        FakeServer(BUSY) as server,
        kind(server.url, retries=1) as client,
        pytest.raises(Busy, match=r"the queue is full"),
    ):
        client.chat("hi")
    assert len(server.requests) == 2


def test_an_error_of_the_request_is_not_tried_again(kind):
    with (
        FakeServer(["[option] wrong"], ANSWER) as server,
        kind(server.url) as client,
        pytest.raises(OptionError),
    ):
        client.chat("hi")
    assert len(server.requests) == 1


def test_an_error_after_the_first_token_is_raised_and_not_tried_again(kind):
    with FakeServer([Delta(text="Hel"), *BUSY], ANSWER) as server, kind(server.url) as client:
        deltas = client.stream("hi")
        assert next(deltas).text == "Hel"
        with pytest.raises(Busy):
            next(deltas)
    assert len(server.requests) == 1


def test_a_server_that_starts_late_is_reached_by_a_retry(kind, quiet_port, monkeypatch):
    server, pause_s, errors = FakeServer(port=quiet_port), Backoff.pause_s, []

    def start_late(backoff, error):
        errors.append(error)
        if len(errors) == 1:
            server.__enter__()
        return pause_s(backoff, error)

    monkeypatch.setattr(Backoff, "pause_s", start_late)
    with kind(server.url, retries=20) as client:
        assert client.chat("hi").text == "Hello there"
    server.__exit__()
    assert errors


def test_a_server_that_came_back_may_have_another_contract(kind, quiet_port):
    with kind(f"127.0.0.1:{quiet_port}", retries=0) as client:
        with FakeServer(port=quiet_port):
            assert client.info().tile_size == 28
        with pytest.raises(ServerError):
            client.chat("hi")
        with FakeServer(port=quiet_port, contract=CONTRACT.replace('"tile_size":28', '"tile_size":56')):
            assert once_reached(client).tile_size == 56


def once_reached(client):
    """What it says of the server as soon as its channel, which waits longer after every failure, tries again."""
    end_s = time.monotonic() + 60
    while time.monotonic() < end_s:
        with suppress(ServerError):
            return client.info()
        time.sleep(0.05)
    raise AssertionError("it is never reached again")


def test_no_server_is_an_error_with_a_cure(kind, quiet_port):
    url = f"127.0.0.1:{quiet_port}"
    with kind(url) as client, pytest.raises(ServerError, match=rf"{url}: .*see that `vitrail serve` runs"):
        client.chat("hi")


def test_a_server_that_never_answers_the_first_call_is_given_up(kind):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"127.0.0.1:{silent.getsockname()[1]}"
        with (
            kind(url, connect_timeout_s=0.3, retries=0) as client,
            pytest.raises(ServerError, match=r"no answer within 0\.3 s"),
        ):
            client.info()


def test_a_server_that_dies_mid_answer_is_an_error_at_once(kind, released):
    server = FakeServer([Delta(text="Hello"), released]).__enter__()
    with kind(server.url) as client:
        deltas = client.stream("hi")
        next(deltas)
        server.__exit__()
        with pytest.raises(ServerError):
            next(deltas)


class Dropping(FakeServer):
    """Ends the first calls as a server does that is stopping."""

    def __init__(self, *drops):
        super().__init__()
        self.drops = list(drops)

    def ModelStreamInfer(self, requests, context):
        if self.drops:
            deque(requests, 0)  # all is sent: what ends a call before that has other words
            context.abort(grpc.StatusCode.CANCELLED, self.drops.pop())
        yield from super().ModelStreamInfer(requests, context)


def test_a_call_that_the_server_cancels_is_asked_again(kind):
    with Dropping("", "CANCELLED") as server, kind(server.url) as client:
        assert client.chat("hi").text == "Hello there"


def test_a_call_that_the_server_cancels_is_the_server_s_error(kind):
    with (
        Dropping("going away") as server,
        kind(server.url, retries=0) as client,
        pytest.raises(ServerError, match=rf"{server.url}: the server.* ended the call.*going away"),
    ):
        client.chat("hi")


@pytest.mark.parametrize(
    ("details", "words", "again"),
    [("Internal error from Core", "ended the call", True), ("a bug", "the call failed", False)],
)
def test_a_call_that_ends_before_all_was_sent_is_asked_again(details, words, again):
    """As asyncio's calls tell it, whatever the server said."""
    metadata = grpc.aio.Metadata()
    cause = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, metadata, metadata, details=details)
    error = error_from_rpc(cause, target="host:1")
    error.__cause__ = cause
    assert isinstance(error, ServerError)
    assert words in str(error)
    assert is_transient(error) is again


def malformed(raw):
    reply = message(final=True)
    reply.infer_response.outputs.add(name="delta", datatype="BYTES", shape=[1])
    reply.infer_response.raw_output_contents.extend(raw)
    return reply


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (malformed([]), "malformed output 'delta' of 0 bytes"),
        (malformed([b"\x09\0\0\0{}"]), "malformed output 'delta' of 6 bytes"),
        (malformed([b"\x02\0\0\0[]"]), "malformed delta"),
        (malformed([b'\x10\0\0\0{"index": "one"}']), "malformed delta"),
        (malformed([b'\x0d\0\0\0{"index": -1}']), "answer -1"),
        (message(Delta(text="x"), final=True), "without its report"),
        (message(final=True), "without its report"),
        ("Stub process 'decoder_0_0' is not healthy.", "process on the server died"),
        ("Request for unknown model: 'internvl' is not found", "does not serve this model"),
        ("something new", "something new"),
    ],
)
def test_a_reply_that_makes_no_sense_is_a_server_error(kind, reply, words):
    with FakeServer([reply]) as server, kind(server.url) as client, pytest.raises(ServerError, match=words):
        client.chat("hi")


def test_an_answer_cut_off_without_a_word_is_a_server_error(kind):
    with (
        FakeServer([Delta(text="Hel")]) as server,
        kind(server.url) as client,
        pytest.raises(ServerError, match="ended the answer before it was complete"),
    ):
        client.chat("hi")


def test_the_contract_is_read_once(kind):
    with FakeServer() as server, kind(server.url) as client:
        assert client.info().tile_size == 28
        server.contract = "gone"
        assert client.info().name == "tiny"


@pytest.mark.parametrize(
    ("contract", "words"),
    [
        (None, "no parameter 'vitrail_contract'"),
        ("not json", "no JSON object"),
        ('{"version": 0}', "contract version 0, this vitrail 1"),
        ('{"version": 1, "name": "x"}', "malformed: field 'prompt'"),
    ],
)
def test_a_foreign_or_old_server_is_named_as_such(kind, contract, words):
    with (
        FakeServer(contract=contract) as server,
        kind(server.url) as client,
        pytest.raises(ServerError, match=words),
    ):
        client.chat("hi")


class RefusingServer(FakeServer):
    """Answers no call but with an error."""

    def ModelConfig(self, request, context):
        context.abort(*self.answers)


@pytest.mark.parametrize(
    ("code", "details", "words"),
    [
        ("NOT_FOUND", "Request for unknown model: 'decoder' is not found", "does not serve this model"),
        ("UNIMPLEMENTED", "Method not found!", "no Triton gRPC server"),
        ("UNAUTHENTICATED", "who are you", "give them as headers"),
        ("PERMISSION_DENIED", "not you", "refused these credentials"),
        ("INTERNAL", "Stub process 'decoder_0_0' is not healthy.", "process on the server died"),
        ("DATA_LOSS", "oops", r"the call failed \(DATA_LOSS: oops\)"),
    ],
)
def test_a_refused_call_is_told_with_its_cure(kind, code, details, words):
    refusal = (grpc.StatusCode[code], details)
    with (
        RefusingServer(*refusal) as server,
        kind(server.url, retries=0) as client,
        pytest.raises(ServerError, match=words),
    ):
        client.info()


def test_unknown_fields_of_a_newer_server_are_ignored(kind):
    contract = json.dumps(json.loads(CONTRACT) | {"novelty": 1})
    with FakeServer(contract=contract) as server, kind(server.url) as client:
        assert client.info().tile_size == 28
