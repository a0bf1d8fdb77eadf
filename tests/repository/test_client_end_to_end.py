"""Both clients and the command line against a real tritonserver: every route, and leaving early in every way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.conftest import REFERENCE, case_messages, case_options, expected_cases
from tests.repository.watching import Scrape, cut_off, idle
from tests.runtime.client.conftest import Blocking
from tritonclient.grpc import service_pb2 as pb

from vitrail.client import Client
from vitrail.decoder import Settings
from vitrail.errors import Busy, Cancelled, PromptTooLong
from vitrail.triton.options import ServerOptions
from vitrail.triton.processes import wait_until
from vitrail.triton.repository import ServingSettings
from vitrail.triton.serve import serving

pytestmark = pytest.mark.server

CASES = ("astronaut", "rocket", "two_images", "multi_turn", "text_only")
LONG = {"max_tokens": 4000, "ignore_eos": True}
# In s, from far too short for LONG on: the first under which an answer begins cuts it off, however slow the machine.
DEADLINES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
SHOWN = [
    {
        "role": "user",
        "content": [
            {"type": "image", "image": REFERENCE / "images" / "astronaut.png"},
            {"type": "text", "text": "What is this?"},
        ],
    }
]
ROUTES = ["ensemble", "direct"]
# Prints which try has begun to answer.
ASKS = """
import sys
from vitrail.client import Client
client = Client(sys.argv[1], route=sys.argv[2])
for count, deadline_s in enumerate({deadlines}, 1):
    for delta in client.stream({messages}, deadline_s=deadline_s, **{options}):
        if delta.finish_reason is None:
            print(count, flush=True)
"""


@pytest.fixture(scope="module")
def server(exported):
    """One slot, and one place in the queue before it."""
    settings = ServingSettings(decoder=Settings(slots=1, queue_limit=1, context_tokens=8192), threads=1)
    options = ServerOptions(grpc_port=0, http_port=0, metrics_port=0)
    with serving(exported("internvl2-tiny"), options=options, settings=settings) as server:
        yield server


@pytest.fixture(scope="module")
def url(server):
    return server.grpc_url


@pytest.fixture
def ended_early(server):
    """ended_early(count): whether so many answers of this test were cut off, or soon are; others would be as long as LONG."""
    before = cut_off(idle(server))
    return lambda count=1: wait_until(lambda: cut_off(Scrape(server)) >= before + count, within_s=60)


@pytest.fixture(params=[Client, Blocking], ids=["sync", "aio"])
def kind(request):
    return request.param


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", CASES)
def test_answers_are_the_reference_s_on_both_routes(kind, url, route, case):
    expected = expected_cases("internvl2-tiny")[case]
    with kind(url, route=route) as client:
        completion = client.chat(case_messages(expected), **case_options(expected))
    assert list(completion.choices[0].token_ids) == expected["greedy_ids"]
    assert [image.tiles for image in completion.images] == expected["tiles_per_image"]
    assert completion.report.prompt_tokens == expected["n_input_ids"]


def test_tiles_in_shared_memory_give_the_same_answer_and_leave_nothing(kind, url):
    with Client(url) as client:
        expected = client.chat(SHOWN, max_tokens=8).text
        with kind(url, shared_memory=True) as sharing:
            assert sharing.chat(SHOWN, max_tokens=8).text == expected
            sharing.stream(SHOWN, **LONG).close()
        assert not client._stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest()).regions
    assert not list(Path("/dev/shm").glob("vitrail-tiles-*"))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("messages", ["hi", SHOWN], ids=["text", "picture"])
def test_leaving_a_stream_ends_its_answer(kind, url, ended_early, route, messages):
    with kind(url, route=route) as client:
        deltas = client.stream(messages, **LONG)
        next(deltas)
        deltas.close()
        assert ended_early()


@pytest.mark.parametrize("route", ROUTES)
def test_closing_the_client_ends_its_answers(kind, url, ended_early, route):
    client = kind(url, route=route)
    deltas = client.stream(SHOWN, **LONG)
    next(deltas)
    client.close()
    assert ended_early()


@pytest.mark.parametrize("route", ROUTES)
def test_an_answer_whose_client_is_killed_goes_on_no_longer_than_its_deadline(url, ended_early, route):
    messages = [{**SHOWN[0], "content": _paths(SHOWN[0]["content"])}]
    program = ASKS.format(deadlines=DEADLINES, messages=messages, options=LONG)
    command = [sys.executable, "-c", program, url, route]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        tries = int(process.stdout.readline())
        process.kill()
    assert ended_early(tries)


def test_a_deadline_ends_with_what_there_is(kind, url):
    with kind(url) as client:
        for deadline_s in DEADLINES:
            completion = client.chat(SHOWN, deadline_s=deadline_s, **LONG)
            assert completion.finish_reason == "deadline"
            if completion.report.completion_tokens:
                break
    assert 0 < completion.report.completion_tokens < 4000


def test_a_full_queue_is_busy(kind, url, ended_early):
    with kind(url, retries=0) as client, Client(url, retries=20) as other:
        running, waiting = other.stream("hi", **LONG), other.stream("hi", **LONG)
        next(running)
        _start(waiting)
        refused = []
        assert wait_until(lambda: refused.append(refusal(client)) or refused[-1], within_s=60)
        assert "1" in refused[-1]
        other.close()
    assert ended_early(2 + refused.count(""))


@pytest.mark.parametrize("route", ROUTES)
def test_an_error_is_the_same_on_both_routes(kind, url, route):
    with kind(url, route=route) as client, pytest.raises(PromptTooLong, match="the prompt has"):
        client.chat(SHOWN, max_tokens=7930)  # the client does not count the text


def test_the_command_line_asks_the_server(url):
    with Client(url) as client:
        expected = client.chat(SHOWN, max_tokens=8).text
    picture = REFERENCE / "images" / "astronaut.png"
    command = [
        sys.executable,
        "-c",
        "from vitrail.cli import app; app()",
        "ask",
        picture,
        "-q",
        "What is this?",
    ]
    asked = subprocess.run(
        [*command, "--url", url, "--max-tokens", "8", "--json"], capture_output=True, check=True
    )
    assert json.loads(asked.stdout)["text"] == expected
    assert b"1 tile, 256 visual tokens" in asked.stderr


def test_a_command_that_is_terminated_ends_its_answer(url, ended_early):
    picture = REFERENCE / "images" / "astronaut.png"
    command = [
        sys.executable,
        "-c",
        "from vitrail.cli import app; app()",
        "ask",
        picture,
        "-q",
        "What is this?",
    ]
    process = subprocess.Popen([*command, "--url", url, "--max-tokens", "4000"], stdout=subprocess.PIPE)
    assert process.stdout.read(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert ended_early()


def refusal(client):
    """What it is told where the queue is full; nothing where it waited there until its deadline."""
    try:
        client.chat("hi", max_tokens=1, deadline_s=0.2)
    except Busy as error:
        return str(error)
    return ""


def _paths(content):
    return [{name: str(value) for name, value in part.items()} for part in content]


def _start(deltas):
    """Send a request whose first token is not due yet; it will be cancelled."""

    def read():
        with pytest.raises(Cancelled):
            next(deltas)

    threading.Thread(target=read, daemon=True).start()


@pytest.mark.parametrize("route", ROUTES)
def test_a_picture_that_comes_again_is_neither_encoded_nor_prefilled_again(kind, url, route):
    with kind(url, route=route) as client:
        first, again = (client.chat(SHOWN, max_tokens=4, ignore_eos=True) for _ in range(2))
    assert again.choices == first.choices
    assert again.report.reused_tiles == again.images[0].tiles
    assert again.report.reused_tokens == again.report.prompt_tokens - 1
