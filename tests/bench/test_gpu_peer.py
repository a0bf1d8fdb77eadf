"""Whatever happens to PyTorch's model costs its own rows only, and is told as its own: dry runs over a broken peer."""

import json
import sys
from importlib import import_module

import pytest
from bench.gpu import device as devices
from bench.gpu.report import card_text, failures, of_vitrail
from bench.gpu.session import Wanted, failed, run

from vitrail.providers import parse_provider
from vitrail.session.cuda_driver import Gpu

STAGES = {"parity", "vision", "prefill", "decode", "answers"}
pytestmark = pytest.mark.timeout(900)  # torch on machines that are busy


@pytest.fixture
def measure(tmp_path):
    """measure() -> the card of a dry run; the same file every time."""
    (tmp_path / "work").mkdir()

    def measured(**changes):
        wanted = {"device": "cpu", "provider": None, "tiny": True, "models": ("tiny:int4",), "slots": None, "seconds": 1e6, "out": tmp_path, "plot": False, "compile": False, "fresh": False, "work": tmp_path / "work"}  # fmt: skip
        card = run(Wanted(**wanted | changes))
        assert json.loads((tmp_path / "cpu-tiny.json").read_text()) == json.loads(json.dumps(card))
        return card

    return measured


def stages(card, who):
    return {row["stage"] for row in card["rows"] if row["who"] == who and "failure" not in row}


def costs_the_peer_only(card):
    assert stages(card, "vitrail") == STAGES
    assert not [row for row in card["rows"] if row["who"] == "vitrail" and "failure" in row]
    assert failures(card)
    assert not failed(card)
    return True


@pytest.mark.parametrize("broken", ["torch", "transformers", "build"])
def test_a_peer_that_cannot_be_had_is_a_line_of_the_report(broken, measure, monkeypatch):
    if broken != "build":
        monkeypatch.delitem(sys.modules, "bench.gpu.peer", raising=False)
        monkeypatch.setitem(sys.modules, broken, None)
    else:
        monkeypatch.setattr(import_module("bench.gpu.peer"), "TorchPeer", lambda: None)
    card = measure()
    assert costs_the_peer_only(card)
    assert stages(card, "torch") == set()
    line = next(
        line for line in card_text(card).splitlines() if line.startswith("FAILED: tiny int4: torch: ")
    )
    assert ("TypeError" if broken == "build" else f"ModuleNotFoundError: import of {broken}") in line
    assert ("FAILED: roofline by torch" in card_text(card)) == (broken == "torch")
    shares = [row for row in card["rows"] if "roofline_share" in row]
    assert bool(shares) == (broken != "torch")


@pytest.mark.parametrize(
    ("method", "left"),
    [("see", {"prefill", "decode"}), ("prefill", {"vision"}), ("decode", {"vision", "prefill"})],
)
def test_a_peer_that_breaks_off_costs_its_own_rows_only(method, left, measure, monkeypatch):
    def broken(*_, **__):
        raise TypeError(f"no such {method}")

    monkeypatch.setattr(import_module("bench.gpu.peer").TorchPeer, method, broken)
    card = measure()
    assert costs_the_peer_only(card)
    assert stages(card, "torch") == left
    assert {each["why"] for each in failures(card)} == {f"TypeError: no such {method}"}
    assert not any(map(of_vitrail, failures(card)))


def test_a_stage_in_which_vitrail_breaks_off_is_vitrails_and_is_measured_by_the_next_run(
    measure, monkeypatch
):
    def broken(*_, **__):
        raise TypeError("no such prompt")

    with monkeypatch.context() as patched:
        patched.setattr(import_module("bench.gpu.contestants").Vitrail, "prefill", broken)
        card = measure()
    assert failed(card)
    assert stages(card, "vitrail") == STAGES - {"prefill", "decode"}
    assert stages(card, "torch") == STAGES - {"parity"}
    before = {(row["stage"], row["measured"]) for row in card["rows"]}
    card = measure()
    assert not failed(card)
    assert stages(card, "vitrail") == STAGES
    assert {row["stage"] for row in card["rows"] if row["run"] == 1} == {"prefill", "decode"}
    assert {each for each in before if each[0] in {"parity", "vision", "answers"}} <= {
        (row["stage"], row["measured"]) for row in card["rows"]
    }


class Driver:
    gpu = Gpu("NVIDIA Some Card", "sm_90", (13, 0))

    def memory_bytes(self):
        return 60 << 30, 80 << 30


def test_a_gpu_that_torch_does_not_reach_is_told_by_its_driver(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(devices, "driver", Driver)
    devices.torch_cuda.cache_clear()
    device = devices.Device("cuda", parse_provider("cuda:0"))
    assert (device.slug, device.used_bytes(), device.free_bytes()) == ("nvidia-some-card", 20 << 30, 60 << 30)
    found = device.fields()
    assert (found["capability"], found["device_memory_gib"], found["cuda"]) == ("sm_90", 80.0, "13.0")
    device.synchronize()
    device.release()
    devices.torch_cuda.cache_clear()
