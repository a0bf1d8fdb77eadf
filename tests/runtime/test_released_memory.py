"""What ONNX Runtime's CPU provider keeps of activations: none for the next layer, none of tiles and prompts after a run."""

import numpy as np
import pytest

from vitrail.manifest import load_manifest
from vitrail.providers import Cpu
from vitrail.session import Step, inference
from vitrail.session.open import open_decoder, open_vision

ENTRY = "memory.enable_memory_arena_shrinkage"


@pytest.fixture
def released(monkeypatch):
    """For every run since, in order, whether it gives its memory back."""
    found, run_options = [], inference.run_options

    def watched(*graph, **options):
        made = run_options(*graph, **options)
        found.append(made.get_run_config_entry(ENTRY) == "cpu:0" if options.get("release") else False)
        return made

    monkeypatch.setattr(inference, "run_options", watched)
    return found


def test_prompts_give_their_memory_back_and_decode_steps_keep_it(exported, released):
    directory = exported("internvl2-tiny")
    session = open_decoder(directory, load_manifest(directory), Cpu(), slots=1, capacity=64)
    embeds = session.embed(np.arange(8, dtype=np.int32))[None]
    session.forward(Step(0, embeds, np.zeros(1, np.int32), np.array([7]), is_prompt=True))
    session.forward(Step(0, embeds[:, :1], np.full(1, 8, np.int32), np.array([0])))
    assert released == [True, False]


@pytest.mark.parametrize(("busy_features", "runs"), [(1 << 20, 2), (1, 3)])
def test_every_run_of_tiles_gives_its_memory_back(exported, released, monkeypatch, busy_features, runs):
    monkeypatch.setattr("vitrail.runs._BUSY_FEATURES", busy_features)
    directory = exported("internvl2-tiny")
    manifest = load_manifest(directory)
    session = open_vision(directory, manifest, Cpu(), tiles_per_run=2)
    size = manifest.vision.tile_size
    session.encode(np.zeros((3, 3, size, size), np.uint8))
    assert released == [True] * runs


def test_no_layer_keeps_its_buffers_for_the_next(exported):
    directory = exported("internvl2-tiny")
    session = open_vision(directory, load_manifest(directory), Cpu(), tiles_per_run=1)
    reused = {each.get_session_options().enable_mem_reuse for each in session.sessions.values()}
    assert reused == {False}
