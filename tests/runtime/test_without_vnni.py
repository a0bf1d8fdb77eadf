"""Products in int8 on a processor that adds them up in 16 bits: hidden from a process here is what spares others that."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vitrail.machine import cpu_features
from vitrail.providers import Cpu
from vitrail.session import inference

SOURCE = Path(__file__).with_name("without_vnni.c")
EXACT = "session.x64quantprecision"
PROGRAM = """
import sys
from pathlib import Path

import numpy as np

from vitrail.manifest import load_manifest
from vitrail.session import Step, inference
from vitrail.session.ort import OrtDecoder, OrtVision

out, features, *directories = sys.argv[1:]
inference.cpu_features = lambda: frozenset(features.split(","))
vision, language = map(Path, directories)
found = {"embeds": OrtVision(vision, load_manifest(vision)).see(np.load("tiles.npy"))}
decoder = OrtDecoder(language, load_manifest(language), slots=1, capacity=64)
embeds = np.load("embeds.npy")
found["logits"] = decoder.forward(Step(0, embeds[None], np.zeros(1, np.int32), np.arange(len(embeds))))
np.savez(out, **found)
"""


@pytest.fixture(scope="module")
def hidden(tmp_path_factory):
    """The library that hides it."""
    if "cpuid_fault" not in cpu_features() or shutil.which("cc") is None:
        pytest.skip("this kernel lets no CPUID instruction trap, or there is no C compiler")
    library = tmp_path_factory.mktemp("hidden") / "without_vnni.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, SOURCE], check=True)
    return library


@pytest.fixture
def computed(exported, tmp_path):
    """computed(the features that vitrail is told of, preload=...) -> embeds and logits of int8 products"""
    random = np.random.default_rng(0)
    np.save(tmp_path / "tiles.npy", random.integers(0, 256, (1, 3, 448, 448), np.uint8))
    np.save(tmp_path / "embeds.npy", random.normal(size=(40, 96)).astype(np.float32))
    vision = exported("internvl2-tiny", precision="float32", vision_precision="int8")
    language = exported("internvl2-tiny", precision="w8a8", sensitive=())

    def compute(features, **environment):
        out = tmp_path / "found.npz"
        command = [sys.executable, "-c", PROGRAM, out, features, vision, language]
        subprocess.run(command, check=True, cwd=tmp_path, env={**os.environ, **environment})
        with np.load(out) as file:
            return dict(file)

    return compute


def error(found, expected):
    """Of the part that is further off, as a share of it."""
    return max(
        np.linalg.norm(found[name] - expected[name]) / np.linalg.norm(expected[name]) for name in expected
    )


def test_products_are_the_same_on_a_processor_without_vnni(hidden, computed):
    exact = computed("avx2")
    assert error(computed("avx2", LD_PRELOAD=str(hidden)), exact) < 0.01
    assert error(computed("avx512_vnni", LD_PRELOAD=str(hidden)), exact) > 0.03, "nothing was hidden"


@pytest.mark.parametrize("features", [{"avx2", "avx512_vnni"}, {"avx2", "avx_vnni"}])
def test_a_processor_with_vnni_keeps_the_faster_kernels(monkeypatch, features):
    monkeypatch.setattr(inference, "cpu_features", lambda: frozenset(features))
    with pytest.raises(RuntimeError, match=EXACT):
        inference._session_options(Cpu(), optimize=True).get_session_config_entry(EXACT)


def test_other_processors_get_the_exact_kernels(monkeypatch):
    monkeypatch.setattr(inference, "cpu_features", lambda: frozenset({"avx2"}))
    options = inference._session_options(Cpu(), optimize=True)
    assert options.get_session_config_entry(EXACT) == "1"
