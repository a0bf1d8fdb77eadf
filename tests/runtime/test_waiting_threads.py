"""Threads of ONNX Runtime's CPU provider that wait for the next operator: awake, for a bounded time, where models are large."""

import numpy as np
import pytest

from vitrail.manifest import load_manifest
from vitrail.providers import Cpu
from vitrail.session import Step, ort
from vitrail.session.inference import SPIN_US
from vitrail.session.open import open_decoder, open_vision

SPINS, DURATION = "session.intra_op.allow_spinning", "session.intra_op.spin_duration_us"


def entries(session):
    options = session.get_session_options()
    spins = options.get_session_config_entry(SPINS)
    return spins, options.get_session_config_entry(DURATION) if spins == "1" else None


@pytest.mark.parametrize(
    ("narrowest", "waits"), [(96, ("1", str(SPIN_US))), (97, ("0", None))], ids=["wide", "narrow"]
)
def test_a_language_model_wide_enough_waits_awake_and_its_vision_asleep(
    exported, monkeypatch, narrowest, waits
):
    monkeypatch.setattr(ort, "SPINNING_WIDTH", narrowest)
    directory = exported("internvl2-tiny")
    manifest = load_manifest(directory)
    decoder = open_decoder(directory, manifest, Cpu(), slots=1, capacity=16)
    vision = open_vision(directory, manifest, Cpu(), tiles_per_run=1)
    assert entries(decoder.session) == waits
    assert {entries(each) for each in vision.sessions.values()} == {("0", None)}


def test_waiting_awake_changes_no_logits(exported, monkeypatch):
    directory = exported("internvl2-tiny")
    manifest = load_manifest(directory)

    def logits():
        session = open_decoder(directory, manifest, Cpu(), slots=1, capacity=16)
        embeds = session.embed(np.arange(8, dtype=np.int32))[None]
        return session.forward(Step(0, embeds, np.zeros(1, np.int32), np.array([7]), is_prompt=True))

    asleep = logits()
    monkeypatch.setattr(ort, "SPINNING_WIDTH", 1)
    np.testing.assert_array_equal(logits(), asleep)
