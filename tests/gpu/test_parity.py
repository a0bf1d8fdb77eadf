"""Every precision and dialect on the GPU, beside the reference's own outputs and a CPU; bfloat16 in emulation where that is what is
tried.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import CHECKPOINTS, case_messages, case_options, expected_cases
from tests.gpu.agreement import cosine
from tests.gpu.reference import (
    CASES,
    CONTEXT_TOKENS,
    FLOORS,
    PICTURED,
    STEPS,
    assert_embeds_of,
    cpu_logits,
    logits,
    prompt,
    text_ids,
    twin_options,
)

from vitrail.engine import Engine
from vitrail.errors import OptionError
from vitrail.manifest import load_manifest
from vitrail.providers import Cpu, Cuda
from vitrail.session.contract import STAGES
from vitrail.session.open import open_decoder, open_vision
from vitrail.session.ort import OrtDecoder, OrtVision
from vitrail_export.emulation import emulated

PRECISIONS = ("float32", "float16", "bfloat16", "int8", "int4")
DIALECTS = ("ort", "standard")


@dataclass(frozen=True)
class Export:
    directory: Path
    checkpoint: str
    precision: str
    dialect: str

    @property
    def manifest(self):
        return load_manifest(self.directory)


def options(precision, dialect):
    """Half precision of everything but float32: what a GPU is given."""
    half = precision if precision in ("float32", "bfloat16") else "float16"
    return {"precision": precision, "dialect": dialect, "vision_precision": half, "activations": half}


@pytest.fixture(scope="module", params=CHECKPOINTS)
def checkpoint(request):
    return request.param


@pytest.fixture(scope="module", params=DIALECTS)
def dialect(request):
    return request.param


@pytest.fixture(scope="module", params=PRECISIONS)
def export(request, checkpoint, dialect, exported):
    directory = exported(checkpoint, **options(request.param, dialect))
    return Export(directory, checkpoint, request.param, dialect)


@pytest.fixture(scope="module")
def twin(export, exported):
    """What a CPU runs beside it."""
    return exported(export.checkpoint, **twin_options(export.precision))


@pytest.fixture(scope="module")
def vision(export, provider):
    if isinstance(provider, Cpu) and export.precision == "bfloat16":
        with emulated(export.directory, export.manifest, STAGES) as manifest:
            yield OrtVision(export.directory, manifest, tiles_per_run=4, optimize=False)
        return
    yield open_vision(export.directory, export.manifest, provider, tiles_per_run=4)


@pytest.fixture(scope="module")
def decoder(export, provider):
    """The decoder under test; skipped where it is float32 in dialect ort, which CUDA has no kernels for."""
    sizes = {"slots": 3, "capacity": CONTEXT_TOKENS}
    if export.precision == "float32" and export.dialect == "ort" and isinstance(provider, Cuda):
        with pytest.raises(OptionError, match="no kernel for, GroupQueryAttention of float32"):
            open_decoder(export.directory, export.manifest, provider, **sizes)
        pytest.skip("GroupQueryAttention has no float32 kernel on CUDA")
    if isinstance(provider, Cpu) and export.precision == "bfloat16":
        with emulated(export.directory, export.manifest, ["decoder"]) as manifest:
            yield OrtDecoder(export.directory, manifest, optimize=False, **sizes)
        return
    yield open_decoder(export.directory, export.manifest, provider, **sizes)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_float32_arithmetic_on_a_cpu(export, decoder, case, twin):
    ids = text_ids(twin, case, export.checkpoint)
    expected = cpu_logits(twin, ids.tobytes())
    found = logits(decoder, ids, STEPS, slot=2)
    assert np.isfinite(found).all()
    assert min(map(cosine, found, expected)) >= FLOORS[export.precision]


@pytest.mark.parametrize("case", PICTURED)
def test_embeds_of_pictures_are_those_of_the_reference(export, vision, case, twin):
    tiles, _ = prompt(twin, case, export.checkpoint)
    tolerance = {"float32": 1e-3, "bfloat16": 0.1}.get(export.precision, 0.03)
    assert_embeds_of(case, vision.see(tiles), export.checkpoint, tolerance=tolerance)


def test_a_tile_does_not_depend_on_its_neighbours(export, vision, twin):
    tiles, _ = prompt(twin, "rocket", export.checkpoint)
    together, alone = vision.encode(tiles[:4]), vision.encode(tiles[3:4])
    assert cosine(together[3], alone[0]) >= FLOORS["float16"]


@pytest.mark.parametrize("case", CASES)
def test_float32_answers_equal_the_reference(checkpoint, case, exported, provider):
    directory = exported(checkpoint, **options("float32", "standard"))
    expected = expected_cases(checkpoint)[case]
    with Engine.load(directory, slots=2, context_tokens=CONTEXT_TOKENS, provider=provider) as engine:
        answer = engine.chat(case_messages(expected), **case_options(expected))
    assert list(answer.choices[0].token_ids) == expected["greedy_ids"]
    assert answer.text == expected["text"].strip()
