"""The GPU benchmark as a command: a dry run on a CPU, and what it says where there is no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vitrail.session.cause import driver_fault

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(900)  # commands that import torch, on machines that are busy

WITHOUT_GPU = pytest.mark.skipif(driver_fault(0) is None, reason="there is a GPU")


def command(module, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    found = command(
        "bench.gpu",
        "--device",
        "cpu",
        "--tiny",
        "--models",
        "tiny:int4",
        "--seconds",
        "1000000",
        "--out",
        str(out),
    )
    assert found.returncode == 0, found.stderr
    return found, json.loads((out / "cpu-tiny.json").read_text()), out


def test_a_dry_run_measures_every_stage_of_vitrail_and_its_peer(run):
    _, card, _ = run
    found = {(row["stage"], row["who"]) for row in card["rows"] if row["stage"] != "parity"}
    assert found == {
        (stage, who) for stage in ("vision", "prefill", "decode", "answers") for who in ("vitrail", "torch")
    }
    assert not card["failures"]
    assert not card["left_out"]
    assert all("failure" not in row for row in card["rows"])
    assert all(row["ms"] > 0 for row in card["rows"] if row["stage"] in {"vision", "prefill", "decode"})
    (memory,) = card["memory"]
    assert memory["weights_gib"] > 0


def test_a_dry_run_shows_that_both_run_the_same_model(run):
    _, card, _ = run
    (parity,) = [row for row in card["rows"] if row["stage"] == "parity"]
    assert parity["vision_cosine"] > 0.9999
    assert parity["logits_cosine"] > 0.95  # int4 against what it was rounded from


def test_a_dry_run_ends_with_its_card_on_one_line(run):
    found, card, out = run
    assert json.loads(found.stdout.splitlines()[-1]) == card
    assert "ms to the first token" in found.stderr
    assert (out / "cpu-tiny.png").stat().st_size > 10_000


@WITHOUT_GPU
@pytest.mark.parametrize("module", ["bench.gpu", "bench.gpu.check"])
def test_without_a_gpu_it_says_so_and_succeeds(module, tmp_path):
    found = command(module, "--out", str(tmp_path))
    assert found.returncode == 0, found.stderr
    assert "NVIDIA driver" in found.stdout
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_model_is_refused_with_what_there_is(tmp_path):
    found = command("bench.gpu", "--device", "cpu", "--tiny", "--models", "tiny:int3", "--out", str(tmp_path))
    assert found.returncode == 2
    assert "'tiny:int3' cannot be measured; choose of tiny, internvl2-2b" in found.stderr
    assert "Traceback" not in found.stderr


def test_the_gpu_tests_themselves_run_on_a_cpu():
    picked = ["tests/gpu/test_serving.py", "-k", "cancelled or same_seed", "-p", "no:cacheprovider"]
    found = command("pytest", "-q", *picked, VITRAIL_TEST_PROVIDER="cpu")
    assert found.returncode == 0, found.stdout
    assert found.stdout.splitlines()[-1].startswith("2 passed")


@WITHOUT_GPU
def test_without_a_gpu_every_gpu_test_is_skipped_with_the_reason():
    found = command("pytest", "-q", "tests/gpu", "-p", "no:cacheprovider")
    assert found.returncode == 0, found.stdout
    last = found.stdout.splitlines()[-1]
    assert "skipped" in last
    assert not {"passed", "failed", "error"} & set(last.replace(",", "").split())
    assert "NVIDIA driver" in found.stdout
