"""The demo checkpoint's recipe learns on the device: a step of each stage, and from what it wrote the next."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vitrail.providers import Cpu

pytest.importorskip("torch")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from demo.recipe.render import fonts  # noqa: E402
from demo.recipe.state import load  # noqa: E402

pytestmark = pytest.mark.skipif(not fonts.are_installed(), reason=f"needs {fonts.PACKAGES}")


@pytest.mark.parametrize("stage", ["vision", "text"])
def test_a_stage_learns_and_goes_on(provider, stage, tmp_path):
    device = "cpu" if isinstance(provider, Cpu) else "cuda"
    options = ["--device", device, "--hours", "0.0001", "--directory", str(tmp_path)]
    for steps in (1, 2):
        subprocess.run(
            [sys.executable, "-m", "demo.recipe", "train", stage, *options], cwd=ROOT, check=True, timeout=300
        )
        assert load(tmp_path / f"{stage}.pt")["step"] >= steps
