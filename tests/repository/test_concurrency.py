"""Sixteen streams at once through tritonserver: each answers as it does alone, whatever becomes of its neighbours."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import tritonclient.grpc as triton
from PIL import Image
from tests.conftest import REFERENCE

from vitrail.client import Client
from vitrail.decoder import Settings
from vitrail.triton.options import ServerOptions
from vitrail.triton.processes import wait_until
from vitrail.triton.repository import ServingSettings
from vitrail.triton.serve import serving

pytestmark = pytest.mark.server

STREAMS = 16
SIZES = [(448, 448), (900, 450), (450, 900), (1000, 1000), (30, 400), (620, 300), (448, 1344), (1344, 448)]
KILLED = """
import sys
from vitrail.client import Client
deltas = Client(sys.argv[1], route=sys.argv[2]).stream(sys.argv[3], max_tokens=3000, ignore_eos=True, deadline_s=60)
next(deltas)
print("answering", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def url(exported):
    decoder = Settings(slots=6, queue_limit=32, context_tokens=4096)
    settings = ServingSettings(decoder=decoder, threads=1, feature_cache_bytes=0)
    options = ServerOptions(grpc_port=0, http_port=0, metrics_port=0)
    with serving(exported("internvl2-tiny"), options=options, settings=settings) as server:
        yield server.grpc_url


@pytest.fixture(scope="module")
def questions():
    """One of its own size and text for every stream; every fourth has no picture."""
    picture = Image.open(REFERENCE / "images" / "coffee.png").convert("RGB")
    return [question(picture.resize(SIZES[n % len(SIZES)]), n) for n in range(STREAMS)]


def question(picture, number):
    text = {"type": "text", "text": f"Question {number}: what is this?"}
    parts = [text] if number % 4 == 3 else [{"type": "image", "image": picture}, text]
    return [{"role": "user", "content": parts}]


def options_of(number):
    return {"max_tokens": 8 + number, "ignore_eos": True, "max_tiles": 3}


def ask(client, messages, number):
    return client.chat(messages, **options_of(number)).choices[0].token_ids


@pytest.fixture(scope="module")
def alone(url, questions):
    with Client(url) as client:
        return [ask(client, messages, number) for number, messages in enumerate(questions)]


def all_at_once(tasks):
    ready = Barrier(len(tasks))

    def run(task):
        ready.wait()
        return task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        return list(pool.map(run, tasks))


def vision_executions(url):
    """(requests, executions) of the vision encoder so far."""
    statistics = triton.InferenceServerClient(url).get_inference_statistics("vision_encoder").model_stats[0]
    return statistics.inference_stats.success.count, statistics.execution_count


def ask_task(client, questions, number):
    return lambda: ask(client, questions[number], number)


@pytest.mark.parametrize("route", ["ensemble", "direct"])
def test_every_answer_equals_its_solo_answer_and_tiles_are_merged(url, questions, alone, route):
    def tiles_were_merged():
        """After a round, as often as it takes: on a busy machine requests may come one by one."""
        requests, executions = vision_executions(url)
        assert all_at_once([ask_task(client, questions, number) for number in range(STREAMS)]) == alone
        more_requests, more_executions = vision_executions(url)
        return more_executions - executions < more_requests - requests

    with Client(url, route=route) as client:
        assert wait_until(tiles_were_merged, within_s=120)


def test_neighbours_that_cancel_run_late_or_are_killed_harm_nobody(url, questions, alone):
    def cancelled():
        with Client(url) as client:
            stream = client.stream(questions[0], max_tokens=2000, ignore_eos=True)
            next(stream)
            stream.close()
            return "cancelled"

    def late():
        with Client(url) as client:
            options = {"max_tokens": 3000, "ignore_eos": True, "deadline_s": 1.0, "max_tiles": 1}
            return client.chat(questions[1], **options).finish_reason

    def killed():
        command = [sys.executable, "-c", KILLED, url, "direct", "hello"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"answering\n"
            process.kill()
        return "killed"

    with Client(url) as client:
        others = [ask_task(client, questions, number) for number in range(3, STREAMS)]
        results = all_at_once([cancelled, late, killed, *others])
        assert results[:3] == ["cancelled", "deadline", "killed"]
        assert results[3:] == alone[3:]
        assert ask(client, questions[0], 0) == alone[0]
