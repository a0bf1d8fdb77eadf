"""Whatever happens to PyTorch's model costs its own rows only, and is told as its own: dry runs over a broken peer."""

import json
import sys
from importlib import import_module

import pytest
from bench.gpu.report import card_text, failures, of_vitrail
from bench.gpu.session import Wanted, failed, run

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


@pytest.mark.parametrize("broken", ["import", "build"])
def test_a_peer_that_cannot_be_had_is_a_line_of_the_report(broken, measure, monkeypatch):
    if broken == "import":
        monkeypatch.delitem(sys.modules, "bench.gpu.peer", raising=False)
        monkeypatch.setitem(sys.modules, "transformers", None)
    else:
        monkeypatch.setattr(import_module("bench.gpu.peer"), "TorchPeer", lambda: None)
    card = measure()
    assert costs_the_peer_only(card)
    assert stages(card, "torch") == set()
    line = next(
        line for line in card_text(card).splitlines() if line.startswith("FAILED: tiny int4: torch: ")
    )
    assert {"import": "ModuleNotFoundError", "build": "TypeError"}[broken] in line


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
