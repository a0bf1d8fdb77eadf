"""The input file for perf_analyzer is what the decoder reads."""

import base64
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from vitrail.manifest import load_manifest
from vitrail.triton.question import read_question

ROOT = Path(__file__).parents[3]
FILE = ROOT / "bench" / "perf_analyzer.json"


@pytest.fixture
def generated(tmp_path, monkeypatch):
    def run(*arguments):
        out = tmp_path / "input.json"
        monkeypatch.syspath_prepend(ROOT / "bench")  # as python does for a script
        monkeypatch.setattr(sys, "argv", ["perf_analyzer_input.py", *arguments, "--out", str(out)])
        runpy.run_path(str(ROOT / "bench" / "perf_analyzer_input.py"), run_name="__main__")
        return json.loads(out.read_text(encoding="utf-8"))["data"]

    return run


def tensors(entry):
    """An entry as perf_analyzer sends it."""
    found = {name: np.array(entry[name], np.object_) for name in ("text_input", "options") if name in entry}
    if "tiles" in entry:
        data = base64.b64decode(entry["tiles"]["content"]["b64"])
        found["tiles"] = np.frombuffer(data, np.uint8).reshape(entry["tiles"]["shape"])
        found["num_tiles"] = np.array(entry["num_tiles"]["content"], np.int32)
    if "max_tokens" in entry:
        found["max_tokens"] = np.array(entry["max_tokens"], np.int32)
    return found


@pytest.fixture
def manifest(exported):
    return load_manifest(exported("internvl2-tiny"))


def test_the_file_in_the_tree_is_what_the_script_writes(generated):
    assert generated("--plain") == json.loads(FILE.read_text(encoding="utf-8"))["data"]


def test_the_decoder_reads_the_file_in_the_tree(manifest):
    (entry,) = json.loads(FILE.read_text(encoding="utf-8"))["data"]
    question = read_question(tensors(entry), manifest=manifest)
    assert question.tiles.shape == (1, 3, 448, 448)
    assert (question.options.max_tokens, question.options.ignore_eos) == (16, True)


def test_every_entry_is_a_picture_of_its_own(manifest, generated):
    entries = generated("--tiles", "3", "--entries", "2", "--stop-early")
    first, second = (read_question(tensors(entry), manifest=manifest) for entry in entries)
    assert first.tiles.shape == second.tiles.shape == (3, 3, 448, 448)
    assert not np.array_equal(first.tiles, second.tiles)
    assert (first.options.max_tokens, first.options.ignore_eos) == (16, False)


def test_a_question_may_have_no_picture(manifest, generated):
    (entry,) = generated("--tiles", "0")
    assert read_question(tensors(entry), manifest=manifest).tiles is None
