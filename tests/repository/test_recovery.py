"""Every process of a server killed under load: its requests end, the others go on, and it comes back by itself."""

import os
import signal
import threading
import time
import urllib.request

import numpy as np
import pytest
from tests.repository.raw import ask, ints
from tests.repository.watching import waiting

from vitrail.triton.processes import shared_memory, wait_until

pytestmark = pytest.mark.server

BACK_WITHIN_S = 120.0


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (2, 3, 448, 448), np.uint8)


class Load:
    """A stream that asks again and again, and what came of it: (began, in seconds; answer).

    `tensors` makes each request's own tensors.
    """

    def __init__(self, url, model, *, tokens=30, tensors=dict):
        self.answers, self._over = [], threading.Event()
        self._ask = lambda: ask(url, model, text_input="hi", max_tokens=ints(tokens), **tensors())
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._over.is_set():
            began_s = time.monotonic()
            answer = self._ask()
            self.answers.append((began_s, answer))
            time.sleep(0.05 if answer.error is None else 0.3)

    def has_recovered(self, since_s):
        """Whether the last request that began after `since_s` was answered."""
        later = [answer for began_s, answer in self.answers if began_s > since_s]
        return bool(later) and later[-1].error is None and not later[-1].hung

    def stop(self):
        self._over.set()
        self._thread.join(60)
        return self.answers


def new_picture():
    """One that no feature cache knows."""
    return {"tiles": np.random.default_rng().integers(0, 256, (6, 3, 448, 448), np.uint8)}


def kill(server, model):
    stub = server.stubs()[model]
    os.kill(stub.pid, signal.SIGKILL)
    return stub


def kill_at_work(server, model):
    """As `kill`, of a process that holds a request, as others wait for it."""
    os.kill(server.stubs()[model].pid, signal.SIGSTOP)
    assert wait_until(lambda: waiting(server, model), within_s=60, every_s=0.01)
    return kill(server, model)


def await_answers(loads):
    began_s = time.monotonic()
    assert wait_until(lambda: all(load.has_recovered(began_s) for load in loads), within_s=BACK_WITHIN_S)


@pytest.mark.parametrize("victim", ["vision_encoder", "projector"])
def test_a_dead_vision_model_fails_its_requests_and_is_loaded_again_beside_the_others(server, victim):
    pid = server.pid
    pictured = [
        Load(server.grpc_url, model, tokens=1, tensors=new_picture) for model in ("internvl", "decoder") * 2
    ]
    text = Load(server.grpc_url, "decoder")
    await_answers([*pictured, text])
    stub = kill_at_work(server, victim)
    assert wait_until(lambda: server.stubs().get(victim, stub) != stub, within_s=BACK_WITHIN_S)
    await_answers(pictured)
    answers = [answer for load in pictured for _, answer in load.stop()]
    assert not any(answer.hung for answer in answers)
    touched = [answer.error for answer in answers if answer.error]
    assert touched
    assert not any("Traceback" in error or "/" in error for error in touched)
    assert all(answer.error is None and answer.texts for _, answer in text.stop()), "text alone was disturbed"
    assert server.pid == pid
    assert wait_until(lambda: not list(shared_memory(stub.region)), within_s=60)


def test_a_dead_decoder_breaks_every_stream_at_once_and_the_server_is_back(server, picture):
    pid = server.pid
    loads = [
        Load(server.grpc_url, "internvl", tensors=lambda: {"tiles": picture}),
        Load(server.grpc_url, "decoder", tensors=lambda: {"tiles": picture}),
        Load(server.grpc_url, "decoder"),
    ]
    await_answers(loads)
    kill(server, "decoder")
    await_answers(loads)
    for answers in [load.stop() for load in loads]:
        assert not any(answer.hung for _, answer in answers)
        assert any(answer.error for _, answer in answers)
    assert server.pid != pid


def test_a_dead_server_is_started_again_and_health_tells_the_truth_meanwhile(server):
    ready = f"http://127.0.0.1:{server.options.http_port}/v2/health/ready"
    os.kill(server.pid, signal.SIGKILL)
    assert wait_until(lambda: not is_ok(ready), within_s=60, every_s=0.01)
    assert wait_until(lambda: is_ok(ready), within_s=BACK_WITHIN_S)
    answer = ask(server.grpc_url, "decoder", text_input="hi", max_tokens=ints(4))
    assert answer.error is None
    assert answer.texts


def is_ok(url):
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return response.status == 200
    except OSError:
        return False
