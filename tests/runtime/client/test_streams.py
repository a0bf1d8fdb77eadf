"""What a client sends and hands on, against a real gRPC server that answers by script (vitrail.client.fake)."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2 as pb

from vitrail.client import AsyncClient, Client
from vitrail.client.fake import ANSWER, CONTRACT, END, FakeServer, inputs, message
from vitrail.client.wire import contract_from_json
from vitrail.core import Delta, Report, TokenLogprob
from vitrail.errors import (
    Cancelled,
    DeadlineExceeded,
    ImageError,
    InvalidInput,
    OptionError,
    PromptTooLong,
    ServerError,
)
from vitrail.options import MAX_DEADLINE_S

PICTURE = Image.fromarray(np.arange(60 * 40 * 3, dtype=np.uint8).reshape(40, 60, 3))
SHOWN = [{"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "?"}]}]
HELLO = Delta(text="Hello")


def aborts(server, *, count=1, timeout_s=60.0):
    """Ids that the server was told to abort, once there are `count` of them."""
    end = time.monotonic() + timeout_s
    while len(server.aborted) < count and time.monotonic() < end:
        time.sleep(0.01)
    return server.aborted


def test_deltas_arrive_in_order_and_chat_joins_them(kind):
    with FakeServer() as server, kind(server.url) as client:
        assert list(client.stream("hi")) == list(ANSWER)
        completion = client.chat("hi")
    assert (completion.text, completion.finish_reason) == ("Hello there", "stop")
    assert completion.choices[0].token_ids == (1, 2)
    assert completion.report.prompt_tokens == 5


def test_a_request_with_pictures_announces_itself_where_the_server_wants_that():
    wants = contract_from_json(CONTRACT).model_copy(update={"announces": True})

    def sent(contract, messages, **settings):
        exchange = Client("localhost", **settings).new_exchange(contract, messages, {})
        return [pb.ModelInferRequest.FromString(request) for request in exchange.next_requests()]

    request, word = sent(wants, SHOWN)
    assert inputs(word) == {"announce": request.id}
    assert (request.model_name, word.model_name) == ("internvl", "decoder")
    assert "triton_enable_empty_final_response" not in word.parameters, "it would have an answer"
    for asked in (
        sent(wants, "no picture, no queue"),
        sent(wants, SHOWN, route="direct"),
        sent(contract_from_json(CONTRACT), SHOWN),
    ):
        assert len(asked) == 1


def test_a_delta_is_handed_on_before_the_next_one_exists(kind, released):
    with FakeServer([HELLO, released]) as server, kind(server.url) as client:
        assert next(client.stream("hi")) == HELLO


def test_an_empty_final_message_ends_the_answer(kind):
    reported = message(END)
    reported.infer_response.parameters["triton_final_response"].bool_param = False
    with FakeServer([reported, message(final=True)]) as server, kind(server.url) as client:
        assert list(client.stream("hi")) == [END]


def test_several_answers_and_their_logprobs_are_kept_apart(kind):
    answer = [
        Delta(index=1, text="b", token_ids=(2,), logprobs=(TokenLogprob(2, -0.5),)),
        Delta(index=0, text="a", token_ids=(1,), logprobs=(TokenLogprob(1, -0.1, ((1, -0.1),)),)),
        Delta(index=0, finish_reason="stop"),
        Delta(index=1, finish_reason="length", report=Report(3, 2)),
    ]
    with FakeServer(answer) as server, kind(server.url) as client:
        first, second = client.chat("hi", n=2, logprobs=1).choices
    assert (first.text, first.finish_reason) == ("a", "stop")
    assert (second.text, second.finish_reason) == ("b", "length")
    assert first.logprobs == (TokenLogprob(1, -0.1, ((1, -0.1),)),)


def test_text_alone_goes_to_the_decoder_and_carries_prompt_and_options(kind):
    with FakeServer() as server, kind(server.url, deadline_s=30) as client:
        client.chat("hi", max_tokens=7, stop=["x"])
    (request,) = server.requests
    assert request.model_name == "decoder"
    assert request.parameters["triton_enable_empty_final_response"].bool_param
    sent = inputs(request)
    assert {"control": "<|im_end|>"} in sent["prompt"]["segments"]
    assert sent["prompt"]["segments"][-1] == {"text": "assistant\n"}
    assert 0 < sent["options"].pop("deadline_s") <= 30
    assert sent["options"] == {"max_tokens": 7, "stop": ["x"]}


@pytest.mark.parametrize(
    ("route", "model"), [("auto", "internvl"), ("ensemble", "internvl"), ("direct", "decoder")]
)
def test_pictures_take_the_chosen_route_as_uint8_tiles(kind, route, model):
    with FakeServer() as server, kind(server.url, route=route) as client:
        prompt = client.prompt(SHOWN, max_tiles=6)
        client.chat(SHOWN, max_tiles=6)
    (request,) = server.requests
    assert request.model_name == model
    (tiles,) = (tensor for tensor in request.inputs if tensor.name == "tiles")
    assert (tiles.datatype, tuple(tiles.shape)) == ("UINT8", prompt.tiles.shape)
    assert inputs(request)["tiles"] == prompt.tiles.tobytes()
    assert inputs(request)["prompt"]["images"][0]["tiles"] == len(prompt.tiles) == 7


@pytest.mark.parametrize(
    ("route", "look_tiles", "model"),
    [("auto", 7, "internvl"), ("auto", 6, "decoder"), ("ensemble", 6, "internvl")],
)
def test_pictures_that_the_decoder_would_hand_on_in_parts_go_there(kind, route, look_tiles, model):
    contract = contract_from_json(CONTRACT).model_copy(update={"look_tiles": look_tiles})
    with (
        FakeServer(contract=contract.model_dump_json()) as server,
        kind(server.url, route=route) as client,
    ):
        client.chat(SHOWN, max_tiles=6)
    assert [request.model_name for request in server.requests] == [model]


def test_wrong_input_is_refused_before_anything_is_sent(kind):
    picture = {"type": "image", "image": PICTURE}
    with FakeServer() as server, kind(server.url) as client:
        with pytest.raises(OptionError, match="did you mean 'max_tokens'"):
            client.chat("hi", max_token=3)
        with pytest.raises(ImageError):
            client.chat([{"role": "user", "content": [{"type": "image", "image": b"no picture"}]}])
        with pytest.raises(InvalidInput, match="make 21 tiles, the server takes 20"):
            client.chat([{"role": "user", "content": [picture] * 3}], max_tiles=6)
        with pytest.raises(InvalidInput, match="no valid Unicode"):
            client.chat("a lone surrogate \udc80")
        for name in ("system", "stop"):
            with pytest.raises(OptionError, match=f"'{name}'.*valid Unicode"):
                client.chat("hi", **{name: "\udc80"})
        with pytest.raises(OptionError, match=r"'deadline_s' is 10000000000\.0; .* 604800"):
            client.chat("hi", deadline_s=1e10)
    assert server.requests == []


def test_pictures_that_leave_no_room_for_the_answer_are_not_sent(kind):
    with FakeServer() as server, kind(server.url) as client:
        with pytest.raises(
            PromptTooLong, match=r"the pictures alone make 28 tokens and max_tokens is 485.* 512;"
        ):
            client.chat(SHOWN, max_tiles=6, max_tokens=485)
        assert server.requests == []
        client.chat(SHOWN, max_tiles=6, max_tokens=484)
        client.chat("the server counts a text's tokens", max_tokens=10**6)
        assert len(server.requests) == 2


def test_a_text_beyond_any_context_is_not_sent(kind):
    with FakeServer() as server, kind(server.url) as client:
        with pytest.raises(PromptTooLong, match=r"text has \d+ bytes, .* 512 tokens, at most 16384 bytes"):
            client.chat("word " * 10_000)
        assert server.requests == []


def test_the_longest_deadline_reaches_the_server_as_one_that_it_takes(kind):
    with (
        FakeServer() as server,
        kind(server.url, deadline_s=MAX_DEADLINE_S, connect_timeout_s=MAX_DEADLINE_S) as client,
    ):
        client.chat("hi")
        client.chat("hi", deadline_s=MAX_DEADLINE_S)
    sent_s = [inputs(request)["options"]["deadline_s"] for request in server.requests]
    assert sent_s == pytest.approx([MAX_DEADLINE_S] * 2, abs=300)
    assert max(sent_s) <= MAX_DEADLINE_S


def test_wrong_messages_and_options_raise_at_the_call_of_stream():
    for client in (Client("localhost"), AsyncClient("localhost")):
        with pytest.raises(OptionError, match="did you mean 'max_tokens'"):
            client.stream("hi", max_token=3)
    with pytest.raises(InvalidInput, match="messages are of type int"):
        AsyncClient("localhost").stream(3)


def test_silence_within_an_answer_is_an_error_and_aborts_it(kind, released):
    with FakeServer([HELLO, released]) as server, kind(server.url, idle_timeout_s=0.2) as client:
        with pytest.raises(ServerError, match=r"sent nothing for 0\.2 s"):
            client.chat("hi")
        assert aborts(server) == [server.requests[0].id]


def test_waiting_in_the_queue_is_not_silence_but_the_deadline_holds(kind, released, monkeypatch):
    monkeypatch.setattr("vitrail.client.exchange.DEADLINE_MARGIN_S", 0.2)
    with FakeServer([released]) as server, kind(server.url, idle_timeout_s=0.1) as client:
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            client.chat("hi", deadline_s=0.5)
        assert time.monotonic() - started > 0.6
        assert 0 < inputs(server.requests[0])["options"]["deadline_s"] <= 0.5
        assert aborts(server) == [server.requests[0].id]


def test_leaving_a_stream_cancels_it_and_aborts_by_its_id(kind, released):
    with FakeServer([HELLO, released]) as server, kind(server.url) as client:
        deltas = client.stream("hi")
        next(deltas)
        deltas.close()
        assert aborts(server) == [server.requests[0].id]


def test_closing_the_client_cancels_every_live_stream(kind, released):
    with FakeServer([HELLO, released]) as server:
        client = kind(server.url)
        first, second = client.stream("hi"), client.stream("hi")
        next(first)
        next(second)
        client.close()
        assert sorted(aborts(server, count=2)) == sorted(request.id for request in server.requests)
        with pytest.raises(Cancelled):
            next(first)
        with pytest.raises(InvalidInput, match="closed"):
            client.chat("hi")


def test_a_closed_client_says_so_before_it_opens_a_picture(kind):
    with FakeServer() as server:
        client = kind(server.url)
        client.info()
        client.close()
        picture = {"type": "image", "image": b"no picture"}
        with pytest.raises(InvalidInput, match="this client is closed; make a new one"):
            client.chat([{"role": "user", "content": [picture]}])


def test_a_finished_answer_is_not_aborted(kind):
    with FakeServer() as server, kind(server.url) as client:
        client.chat("hi")
    assert server.aborted == []


def test_cancelling_the_waiting_task_aborts_the_request(released):
    async def ask(server):
        async with AsyncClient(server.url) as client:
            deltas = client.stream("hi")
            await anext(deltas)
            task = asyncio.create_task(anext(deltas))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with FakeServer([HELLO, released]) as server:
        asyncio.run(ask(server))
        assert aborts(server) == [server.requests[0].id]


def test_threads_share_one_client():
    answers = []
    with FakeServer() as server, Client(server.url) as client:
        threads = [threading.Thread(target=lambda: answers.append(client.chat("hi").text)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == ["Hello there"] * 6


def test_interrupting_a_process_that_waits_aborts_its_request(released):
    program = (
        "import sys; from vitrail.client import Client\nwith Client(sys.argv[1]) as client: client.chat('hi')"
    )
    with FakeServer([HELLO, released]) as server:
        process = subprocess.Popen([sys.executable, "-c", program, server.url], stderr=subprocess.PIPE)
        while not server.requests and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in process.communicate(timeout=120)[1]
        assert aborts(server) == [server.requests[0].id]


def shared_regions():
    return [path for path in Path("/dev/shm").iterdir() if path.name.startswith("vitrail-tiles-")]


class ReadingServer(FakeServer):
    """Reads the shared region that a request names, as Triton does."""

    refusals = 0

    def SystemSharedMemoryRegister(self, request, context):
        self.calls.append(request)
        return pb.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryUnregister(self, request, context):
        self.calls.append(request)
        if self.refusals:
            self.refusals -= 1
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "Cannot unregister, it is currently in use.")
        return pb.SystemSharedMemoryUnregisterResponse()

    def _answer(self, answer):
        (tiles,) = (tensor for tensor in self.requests[-1].inputs if tensor.name == "tiles")
        self.read = Path("/dev/shm", tiles.parameters["shared_memory_region"].string_param).read_bytes()
        yield from super()._answer(answer)


@pytest.mark.parametrize("answer", [ANSWER, ["[image] bad"]], ids=["answered", "failed"])
def test_shared_tiles_are_registered_read_unregistered_and_gone(kind, answer):
    with ReadingServer(answer) as server, kind(server.url, shared_memory=True) as client:
        tiles = client.prompt(SHOWN).tiles
        try:
            assert client.chat(SHOWN).text == "Hello there"
        except ImageError:
            assert answer is not ANSWER
        _, register, unregister = server.calls
    assert server.read == tiles.tobytes()
    assert (register.key, register.byte_size) == (f"/{register.name}", tiles.nbytes)
    assert unregister.name == register.name
    assert "tiles" not in inputs(server.requests[0])
    assert shared_regions() == []


def test_a_region_that_is_still_read_is_unregistered_later(kind):
    with ReadingServer() as server:
        server.refusals = 3
        with kind(server.url, shared_memory=True) as client:
            client.chat(SHOWN)
            client.chat(SHOWN)
    unregistered = [
        call.name for call in server.calls if isinstance(call, pb.SystemSharedMemoryUnregisterRequest)
    ]
    assert len(set(unregistered)) == 2
    assert len(unregistered) == 2 + 3


def test_tiles_that_do_not_fit_in_shared_memory_are_refused(kind, monkeypatch):
    monkeypatch.setattr("vitrail.client.shm.free_bytes", lambda: 100)
    with (
        FakeServer() as server,
        kind(server.url, shared_memory=True) as client,
        pytest.raises(InvalidInput, match=r"has 100 left; make the client with shared_memory=False"),
    ):
        client.chat(SHOWN)


def test_the_client_and_the_package_load_nothing_heavy():
    program = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "onnxruntime", "tokenizers", "sentencepiece", "transformers", "onnx", "onnxscript"}:
            raise ImportError(f"{name} must not be needed")
sys.meta_path.insert(0, Blocked())
import vitrail, vitrail.client, vitrail.cli
from vitrail.client import AsyncClient, Client
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_server_that_reads_the_wire_loads_no_grpc():
    program = "import sys, vitrail.client.wire; sys.exit('grpc' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_an_async_client_in_a_second_loop_is_refused():
    with FakeServer() as server:
        client = AsyncClient(server.url)
        assert asyncio.run(client.chat("hi")).text == "Hello there"
        with pytest.raises(InvalidInput, match="another event loop; make one for each"):
            asyncio.run(client.chat("hi"))


def test_threads_that_ask_first_at_once_open_one_channel(monkeypatch):
    opened, meeting = [], threading.Barrier(2)

    def open_channel(client, module):
        opened.append(client)
        with suppress(threading.BrokenBarrierError):
            meeting.wait(0.5)  # for another that opens one, too
        return opening(client, module)

    opening = Client.open_channel
    monkeypatch.setattr(Client, "open_channel", open_channel)
    with FakeServer() as server, Client(server.url) as client, ThreadPoolExecutor(2) as pool:
        assert {contract.tile_size for contract in pool.map(lambda _: client.info(), range(2))} == {28}
    assert len(opened) == 1
