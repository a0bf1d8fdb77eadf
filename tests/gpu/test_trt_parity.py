"""TensorRT's engines of both checkpoints on every reference case, beside the reference's own outputs and a CPU."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import REFERENCE
from tests.gpu.agreement import assert_same_answer, cosine
from tests.gpu.engines import BUILDERS, build, provider_of
from tests.gpu.reference import (
    CASES,
    CONTEXT_TOKENS,
    FLOORS,
    PICTURED,
    STEPS,
    asked,
    assert_embeds_of,
    cpu_answer,
    cpu_logits,
    logits,
    prompt,
    text_ids,
    twin_options,
)

from vitrail.engine import Engine
from vitrail.manifest import load_manifest
from vitrail.providers import Cpu
from vitrail.session.open import open_decoder, open_vision

# What a precision of the vision encoder's engine costs: the floor of cosines, and of embeds a share of a typical element.
COSINES = {"fp16": 1.0, "bf16": 0.99, "int8": 0.99}
TOLERANCES = {"fp16": 0.03, "bf16": 0.2}
# Nats between two tokens that may change places. An int4 decoder has its scales in half precision, too.
TIES = {"float16": 0.05, "int4": 0.15, "bf16": 0.3, "int8": 0.3}


@dataclass(frozen=True)
class Form:
    """The decoder's weights, and how the vision encoder's engine computes; in bf16, the decoder's does, too."""

    checkpoint: str
    weights: str
    vision: str = "fp16"

    @property
    def floor(self):
        return min(FLOORS[self.weights], COSINES["bf16" if self.vision == "bf16" else "fp16"])

    @property
    def tie(self):
        return max(TIES[self.weights], TIES.get(self.vision, 0))


FORMS = [
    Form("internvl2-tiny", "float16"),
    Form("internvl2-tiny", "int4", "int8"),
    Form("internvl3-tiny", "int4"),
    Form("internvl3-tiny", "float16", "bf16"),
]


@pytest.fixture(scope="module", params=BUILDERS)
def builder(request):
    return request.param


@pytest.fixture(scope="module", params=FORMS, ids=str)
def form(request):
    return request.param


@pytest.fixture(scope="module")
def directory(builder, form, exported, tmp_path_factory) -> Path:
    half = {"vision_precision": "float16", "activations": "float16", "dialect": "standard"}
    calibrated = {
        "pictures": (REFERENCE / "images" / "coffee.png", REFERENCE / "images" / "rocket.jpg"),
        "checkpoint": REFERENCE / form.checkpoint,
    }
    return build(
        exported(form.checkpoint, precision=form.weights, **half),
        tmp_path_factory.mktemp("engines"),
        builder=builder,
        precision=form.vision,
        slots=3,
        context_tokens=CONTEXT_TOKENS,
        max_tiles=5,
        chunk=512,
        **(calibrated if form.vision == "int8" else {}),
    )


@pytest.fixture(scope="module")
def twin(form, exported):
    return exported(form.checkpoint, **twin_options(form.weights))


@pytest.fixture(scope="module")
def vision(directory, builder):
    return open_vision(directory, load_manifest(directory), provider_of(builder))


@pytest.fixture(scope="module")
def decoder(directory, builder):
    provider = provider_of(builder)
    return open_decoder(directory, load_manifest(directory), provider, slots=3, capacity=CONTEXT_TOKENS)


@pytest.fixture(scope="module")
def engine(directory, builder):
    provider = provider_of(builder)
    with Engine.load(directory, slots=2, context_tokens=CONTEXT_TOKENS, provider=provider) as engine:
        yield engine


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_float32_arithmetic_on_a_cpu(form, twin, decoder, case):
    ids = text_ids(twin, case, form.checkpoint)
    expected, found = cpu_logits(twin, ids.tobytes()), logits(decoder, ids, STEPS, slot=2)
    assert np.isfinite(found).all()
    assert min(map(cosine, found, expected)) >= form.floor


@pytest.mark.parametrize("case", PICTURED)
def test_embeds_of_pictures_are_those_of_the_reference(form, twin, vision, case):
    tiles, _ = prompt(twin, case, form.checkpoint)
    found = vision.see(tiles)
    assert np.isfinite(found.astype(np.float32)).all()
    if form.vision in TOLERANCES:
        assert_embeds_of(case, found, form.checkpoint, tolerance=TOLERANCES[form.vision])
        return
    exact = open_vision(twin, load_manifest(twin), Cpu())
    assert cosine(found, exact.see(tiles)) >= COSINES[form.vision]


@pytest.mark.parametrize("case", CASES)
def test_answers_are_those_of_a_cpu_but_for_near_ties(form, twin, engine, case):
    expected = cpu_answer(twin, case, form.checkpoint)
    assert len(expected.token_ids) == 24
    assert_same_answer(asked(engine, case, form.checkpoint), expected, tie=form.tie)
