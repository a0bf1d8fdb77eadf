"""A worker that dies, hangs, talks nonsense or fails is told of, and holds nobody up."""

import sys

import pytest
from bench.peers.process import Worker, WorkerError

ECHO = """
import json, os, signal, sys, time
print("a library says hello", file=sys.stderr)
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "quit":
        break
    if request["do"] == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if request["do"] == "exit":
        print("Traceback\\nMemoryError: no room for it", file=sys.stderr)
        sys.exit(3)
    if request["do"] == "hang":
        time.sleep(600)
    if request["do"] == "babble":
        print("loading weights 12%", flush=True)
        continue
    if request["do"] == "fail":
        print(json.dumps({"error": "ValueError: 9 rows exceed 8"}), flush=True)
        continue
    print(json.dumps({"seconds": 0.5, "said": request["do"]}), flush=True)
"""


@pytest.fixture
def worker(tmp_path):
    found = Worker([sys.executable, "-c", ECHO], log=tmp_path / "logs" / "echo.log")
    yield found
    found.close()


def ask(worker, what, timeout_s=30.0):
    return worker.ask({"do": what}, timeout_s=timeout_s)


def test_an_answer_comes_back_as_it_was_written(worker):
    assert ask(worker, "measure") == {"seconds": 0.5, "said": "measure"}
    assert worker.peak_rss_bytes > 1 << 20
    assert worker.cpu_s > 0


def test_an_error_is_raised_and_the_worker_goes_on(worker):
    with pytest.raises(WorkerError, match=r"^ValueError: 9 rows exceed 8$"):
        ask(worker, "fail")
    assert ask(worker, "measure")["seconds"] == 0.5


def test_a_worker_that_is_killed_is_told_with_its_signal(worker):
    with pytest.raises(WorkerError, match=r"ended with SIGSEGV: a library says hello"):
        ask(worker, "die")
    with pytest.raises(WorkerError, match="ended with SIGSEGV"):
        ask(worker, "measure")


def test_a_worker_that_exits_is_told_with_its_last_words(worker):
    with pytest.raises(WorkerError, match=r"ended with exit code 3: MemoryError: no room for it"):
        ask(worker, "exit")


def test_a_worker_that_hangs_is_ended_when_its_time_is_up(worker):
    with pytest.raises(WorkerError, match=r"no answer to 'hang' within 1 s; ended it"):
        ask(worker, "hang", timeout_s=1)
    assert not worker.alive


def test_a_worker_that_prints_among_its_answers_is_ended(worker):
    with pytest.raises(WorkerError, match=r"by no JSON object: loading weights 12%"):
        ask(worker, "babble")
    assert not worker.alive


def test_what_a_dead_worker_used_is_nothing(worker):
    worker.close()
    assert (worker.peak_rss_bytes, worker.cpu_s) == (0, 0.0)


def test_closing_twice_is_closing(worker):
    worker.close()
    worker.close()
    assert not worker.alive
