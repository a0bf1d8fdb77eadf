"""The demo checkpoint, where it is: every precision on the GPU answers about a page as on a CPU."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from tests.gpu.agreement import assert_same_answer, cosine

from vitrail.engine import Engine
from vitrail.manifest import load_manifest
from vitrail.providers import Cpu
from vitrail.session.open import open_vision
from vitrail_export.exporter import ExportOptions, export_checkpoint

ROOT = Path(__file__).parents[2]
PLACES = [ROOT / "demo" / "checkpoint", ROOT / "models" / "demo-checkpoint"]
CHECKPOINT = next((place for place in PLACES if (place / "config.json").is_file()), None)
TIES = {"float32": 0.05, "float16": 0.05, "int4": 0.15}  # int4 has its scales in half precision, too
ASKED = {"max_tokens": 16, "ignore_eos": True, "logprobs": 20}

pytestmark = pytest.mark.skipif(CHECKPOINT is None, reason="there is no demo checkpoint here")


@pytest.fixture(scope="module", params=TIES)
def precision(request):
    return request.param


@pytest.fixture(scope="module")
def pair(precision, tmp_path_factory):
    """(what the GPU runs, the same weights for a CPU, in float32 arithmetic): the standard dialect has kernels for all."""
    half = "float32" if precision == "float32" else "float16"
    kept = "int4" if precision == "int4" else "float32"

    def made(name, **options):
        out = tmp_path_factory.mktemp(f"demo-{name}")
        export_checkpoint(CHECKPOINT, out, options=ExportOptions(dialect="standard", **options))
        return out

    given = made(precision, precision=precision, vision_precision=half, activations=half)
    return given, made("twin", precision=kept, vision_precision="float32", activations="float32")


def page():
    image = Image.new("RGB", (448, 224), "white")
    pen = ImageDraw.Draw(image)
    for line, text in enumerate(("Invoice 4711", "Total 12.50")):
        pen.text((20, 30 + 80 * line), text, fill="black", font_size=36)
    return image


def test_embeds_of_a_page_are_those_of_a_cpu(pair, provider):
    given, twin = pair
    with Engine.load(twin, slots=1, context_tokens=1024) as engine:
        tiles = engine.prompt([{"role": "user", "content": [{"type": "image", "image": page()}]}]).tiles
    sessions = [
        open_vision(directory, load_manifest(directory), where)
        for directory, where in ((given, provider), (twin, Cpu()))
    ]
    found, expected = (session.project(session.encode(tiles)) for session in sessions)
    assert np.isfinite(found.astype(np.float32)).all()
    assert cosine(found, expected) >= 0.999


def test_answers_about_a_page_are_those_of_a_cpu(precision, pair, provider):
    messages = [
        {"role": "user", "content": [{"type": "image", "image": page()}, {"type": "text", "text": "Total?"}]}
    ]
    answers = []
    for directory, where in zip(pair, (provider, Cpu()), strict=True):
        with Engine.load(directory, slots=1, context_tokens=1024, provider=where) as engine:
            answers.append(engine.chat(messages, **ASKED).choices[0])
    assert_same_answer(*answers, tie=TIES[precision])
