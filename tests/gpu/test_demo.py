"""The demo checkpoint, where it is: every precision on the GPU answers about a page as on a CPU."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from tests.gpu.agreement import assert_same_answer, cosine
from tests.gpu.engines import BUILDERS, build, provider_of

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
CONTEXT_TOKENS = 1024

pytestmark = pytest.mark.skipif(CHECKPOINT is None, reason="there is no demo checkpoint here")


@pytest.fixture(scope="module", params=[None, *BUILDERS], ids=lambda each: each or "onnxruntime")
def builder(request):
    """Whose engines answer; None for ONNX Runtime's graphs."""
    return request.param


@pytest.fixture(scope="module")
def provider(builder, provider):
    return provider if builder is None else provider_of(builder)


@pytest.fixture(scope="module", params=TIES)
def precision(request):
    return request.param


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """demo(precision=..., activations=...) -> an export of the standard dialect, made once."""

    @cache
    def made(**options):
        out = tmp_path_factory.mktemp("demo")
        export_checkpoint(CHECKPOINT, out, options=ExportOptions(dialect="standard", **options))
        return out

    return made


@pytest.fixture(scope="module")
def pair(builder, precision, demo, tmp_path_factory):
    """(what the GPU runs, the same weights for a CPU, in float32 arithmetic): the standard dialect has kernels for all."""
    if builder and precision == "float32":
        pytest.skip("engines compute in half precision")
    half = "float32" if precision == "float32" else "float16"
    given = demo(precision=precision, vision_precision=half, activations=half)
    if builder:
        shape = {"slots": 1, "context_tokens": CONTEXT_TOKENS, "max_tiles": 4, "chunk": 256}
        given = build(given, tmp_path_factory.mktemp("engines"), builder=builder, **shape)
    kept = "int4" if precision == "int4" else "float32"
    return given, demo(precision=kept, vision_precision="float32", activations="float32")


def page():
    image = Image.new("RGB", (448, 224), "white")
    pen = ImageDraw.Draw(image)
    for line, text in enumerate(("Invoice 4711", "Total 12.50")):
        pen.text((20, 30 + 80 * line), text, fill="black", font_size=36)
    return image


def tiles_of_page(directory):
    with Engine.load(directory, slots=1, context_tokens=CONTEXT_TOKENS) as engine:
        return engine.prompt([{"role": "user", "content": [{"type": "image", "image": page()}]}]).tiles


def embeds(directory, provider, tiles):
    found = open_vision(directory, load_manifest(directory), provider).see(tiles)
    assert np.isfinite(found.astype(np.float32)).all()
    return found


def test_embeds_of_a_page_are_those_of_a_cpu(pair, provider):
    given, twin = pair
    tiles = tiles_of_page(twin)
    assert cosine(embeds(given, provider, tiles), embeds(twin, Cpu(), tiles)) >= 0.999


@pytest.mark.parametrize("builder", BUILDERS, scope="module")
def test_an_int8_vision_engine_keeps_to_what_it_was_passed_with(builder, demo, tmp_path):
    """Skipped where the builder's own check refuses it, with the cosine that it measured."""
    half = demo(precision="float16", vision_precision="float16", activations="float16")
    page().save(tmp_path / "page.png")
    calibrated = {"pictures": (tmp_path / "page.png",), "checkpoint": CHECKPOINT}
    shape = {"context_tokens": CONTEXT_TOKENS, "chunk": 256}
    given = build(half, tmp_path, builder=builder, precision="int8", **shape, **calibrated)
    tiles = tiles_of_page(half)
    assert cosine(embeds(given, provider_of(builder), tiles), embeds(half, Cpu(), tiles)) >= 0.99


def test_answers_about_a_page_are_those_of_a_cpu(precision, pair, provider):
    messages = [
        {"role": "user", "content": [{"type": "image", "image": page()}, {"type": "text", "text": "Total?"}]}
    ]
    answers = []
    for directory, where in zip(pair, (provider, Cpu()), strict=True):
        with Engine.load(directory, slots=1, context_tokens=CONTEXT_TOKENS, provider=where) as engine:
            answers.append(engine.chat(messages, **ASKED).choices[0])
    assert_same_answer(*answers, tie=TIES[precision])
