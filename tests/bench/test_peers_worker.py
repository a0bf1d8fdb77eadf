"""The far end, in a process of its own, around a contestant that computes nothing."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from bench.peers.process import Worker, WorkerError

ROOT = Path(__file__).parents[2]
CONTESTANT = """
import os
import numpy as np


class Contestant:
    packages = ("numpy",)

    def __init__(self, options):
        self.options = options
        print("libraries print what they like", flush=True)
        os.write(1, b"from C, too\\n")

    def prepare(self):
        (self.options.work / "prepared").write_text(self.options.precision)

    def load(self, part):
        if self.options.extra.get("broken"):
            raise ImportError("libgomp.so.1: cannot open shared object file\\nsecond line")

    def see(self, tiles):
        return tiles.reshape(len(tiles), 1, -1).astype(np.float32)

    def first(self, ids):
        return int(ids[-1])

    def logits(self, ids):
        return None

    def begin(self, ids, *, rows, steps):
        if rows * steps > 8:
            raise ValueError(f"no room for {rows} rows of {len(ids)} and {steps}")

    def decode(self, steps):
        pass
"""


@pytest.fixture
def started(tmp_path):
    (tmp_path / "still.py").write_text(CONTESTANT)
    np.savez(
        tmp_path / "inputs.npz",
        tiles=np.ones((3, 3, 2, 2), np.uint8),
        prompt=np.arange(20, dtype=np.int32),
        checks=np.arange(6, dtype=np.int32).reshape(2, 3),
    )
    opened = []

    def start(module="still", **extra):
        options = {
            "work": str(tmp_path),
            "precision": "bf16",
            "threads": 1,
            "rows": 2,
            "context": 32,
            "tile_size": 2,
            "extra": extra,
        }
        command = [sys.executable, "-m", "bench.peers.worker", module, json.dumps(options)]
        path = os.pathsep.join([str(ROOT), str(tmp_path)])
        opened.append(Worker(command, log=tmp_path / "log", environment={"PYTHONPATH": path}))
        return opened[-1]

    yield start
    for worker in opened:
        worker.close()


def load(worker, tmp_path, part="language"):
    return worker.ask({"do": "load", "part": part, "inputs": str(tmp_path / "inputs.npz")}, timeout_s=60)


def test_a_contestant_prepares_loads_and_is_measured(started, tmp_path):
    worker = started()
    assert worker.ask({"do": "prepare"}, timeout_s=60) == {}
    assert (tmp_path / "prepared").read_text() == "bf16"
    assert load(worker, tmp_path) == {"versions": {"numpy": np.__version__}}
    decode = {"stage": "decode", "rows": 2, "past": 8, "steps": 2, "room": 4}
    worker.ask({"do": "begin", **decode}, timeout_s=60)
    for stage in ({"stage": "vision", "tiles": 2}, {"stage": "prefill", "tokens": 9}, decode):
        assert worker.ask({"do": "measure", **stage}, timeout_s=60)["seconds"] >= 0
    assert "from C, too" in (tmp_path / "log").read_text()


def test_its_outputs_are_written_for_comparing(started, tmp_path):
    worker = started()
    load(worker, tmp_path)
    for part in ("vision", "language"):
        out = str(tmp_path / f"{part}.npz")
        worker.ask({"do": "check", "part": part, "outputs": out}, timeout_s=60)
    assert np.load(tmp_path / "vision.npz")["embeds"].shape == (2, 1, 12)
    found = np.load(tmp_path / "language.npz")
    assert found["first"].tolist() == [2, 5]
    assert found.files == ["first"]


def test_what_it_raises_is_told_in_one_line_and_it_can_be_asked_on(started, tmp_path):
    worker = started(broken="yes")
    with pytest.raises(WorkerError, match=r"^ImportError: libgomp.so.1: cannot open shared object file$"):
        load(worker, tmp_path)
    assert worker.ask({"do": "measure", "stage": "prefill", "tokens": 3}, timeout_s=60)["seconds"] >= 0


def test_a_module_that_cannot_be_imported_is_an_error_and_no_end(started, tmp_path):
    worker = started("bench.peers.workers.nobody")
    with pytest.raises(WorkerError, match="ModuleNotFoundError"):
        load(worker, tmp_path)
    assert worker.alive


def test_a_stage_that_it_has_no_room_for_is_told(started, tmp_path):
    worker = started()
    load(worker, tmp_path)
    with pytest.raises(WorkerError, match="no room for 4 rows of 8 and 4"):
        worker.ask({"do": "begin", "stage": "decode", "rows": 4, "past": 8, "room": 4}, timeout_s=60)
