"""Streams beside a load."""

from __future__ import annotations

import threading

import pytest
from tests.runtime.benchmark.fakes import report

from vitrail.benchmark.load import Load
from vitrail.benchmark.sweep import STREAM_ANSWERS, run_sweep
from vitrail.benchmark.target import Target
from vitrail.benchmark.workload import Tiling, Workload
from vitrail.core import Delta
from vitrail.errors import OptionError

STREAM_TOKENS = 9


class Beside:
    """Answers a question with a picture only after a further stream has begun."""

    def __init__(self):
        self.written = threading.Semaphore(0)
        self.questions = 0

    def stream(self, messages, **options):
        tokens = options["max_tokens"]
        pictured = isinstance(messages[0]["content"], list)
        assert pictured is (tokens != STREAM_TOKENS)
        if pictured:
            self.questions += 1
            while self.written.acquire(blocking=False):
                pass
            assert self.written.acquire(timeout=60)
        else:
            self.written.release()
        yield Delta(token_ids=tuple(range(tokens)))
        yield Delta(finish_reason="length", report=report(tokens))


def swept(*loads, **options):
    asked = Beside()
    target = Target(asked, Tiling(28, 12, thumbnail=True), {}, close=lambda: None)
    workload = Workload(tiles=(3,), output_tokens=2, stream_tokens=STREAM_TOKENS, **options)
    return run_sweep(target, workload, loads, timeout_s=5), asked


def test_streams_are_measured_alone_and_beside_each_load():
    tallies, asked = swept(Load(concurrency=1, requests=3), Load(concurrency=2, requests=4), streams=2)
    assert [tally.load.title for tally in tallies] == [
        "streams before concurrency 1",
        "concurrency 1",
        "streams beside concurrency 1",
        "streams before concurrency 2",
        "concurrency 2",
        "streams beside concurrency 2",
    ]
    assert [len(tally.answered) for tally in tallies[:2]] == [2 * STREAM_ANSWERS, 3]
    assert all(len(tally.answered) >= 1 and not tally.failures for tally in tallies)
    assert asked.questions == 3 + 4


def test_a_negative_number_of_streams_is_refused():
    with pytest.raises(OptionError, match="streams is -1; it must be at least 0"):
        Workload(streams=-1)
