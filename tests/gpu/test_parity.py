"""Every precision and dialect on the GPU, beside the reference's own outputs and a CPU."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import CHECKPOINTS, case_messages, case_options, expected_cases
from tests.gpu.agreement import cosine

from vitrail.engine import Engine
from vitrail.errors import VitrailError
from vitrail.manifest import load_manifest
from vitrail.providers import Cpu, Cuda
from vitrail.session import Step
from vitrail.session.open import open_decoder, open_vision

PRECISIONS = ("float32", "float16", "int4")
DIALECTS = ("ort", "standard")
FLOORS = {"float32": 0.99999, "float16": 0.999, "int4": 0.998}
CASES = ("rocket", "multi_turn", "text_only")
STEPS = 6


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
    half = "float32" if precision == "float32" else "float16"
    return {"precision": precision, "dialect": dialect, "vision_precision": half, "activations": half}


def twin_options(precision):
    """The same weights, computed in float32: the ort dialect's int4 would quantize activations on a CPU."""
    kept = "int4" if precision == "int4" else "float32"
    return {
        "precision": kept,
        "dialect": "standard",
        "vision_precision": "float32",
        "activations": "float32",
    }


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


@cache
def prompt(directory, case, checkpoint):
    """(tiles, token ids) of a reference case."""
    with Engine.load(directory, slots=1, context_tokens=4096) as engine:
        expected = expected_cases(checkpoint)[case]
        found = engine.prompt(case_messages(expected), max_tiles=case_options(expected)["max_tiles"])
    return found.tiles, np.array(found.token_ids, np.int32)


@pytest.fixture(scope="module")
def vision(export, provider):
    return open_vision(export.directory, export.manifest, provider, tiles_per_run=4)


@pytest.fixture(scope="module")
def decoder(export, provider):
    """The decoder under test; skipped where the provider says that it has no kernels for this one."""
    try:
        return open_decoder(export.directory, export.manifest, provider, slots=3, capacity=4096)
    except VitrailError as error:
        if isinstance(provider, Cuda) and export.precision == "float32" and export.dialect == "ort":
            pytest.skip(f"refused: {error}")  # GroupQueryAttention has no float32 kernel on CUDA
        raise


def logits(session, ids, steps, *, slot=0, chunk=512):
    """Teacher-forced: the logits that predict each of the last `steps` ids [steps, vocab]."""
    head = len(ids) - steps
    parts = [(ids[start : min(start + chunk, head)], start) for start in range(0, head, chunk)]
    wanted = [[len(part) - 1] if start + chunk >= head else [] for part, start in parts]
    parts += [(ids[at : at + 1], at) for at in range(head, len(ids) - 1)]
    wanted += [[0]] * (steps - 1)
    runs = [
        session.forward(step(session, part, start, positions, slot))
        for (part, start), positions in zip(parts, wanted, strict=True)
    ]
    return np.concatenate([run for run in runs if len(run)])


@cache
def cpu_logits(directory, ids):
    """As `logits`, on a CPU; ids as the bytes of their int32 array."""
    session = open_decoder(directory, load_manifest(directory), Cpu(), slots=1, capacity=4096)
    return logits(session, np.frombuffer(ids, np.int32), STEPS)


def step(session: Any, ids, past, wanted, slot):
    return Step(
        first_slot=slot,
        inputs_embeds=session.embed(ids)[None],
        past_lengths=np.array([past], np.int32),
        logit_positions=np.array(wanted, np.int64),
    )


def text_ids(export, case):
    """The case's ids: what a decoder predicts after them does not need its pictures."""
    return prompt(export.directory, case, export.checkpoint)[1][-600:]


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_float32_arithmetic_on_a_cpu(export, decoder, case, exported):
    ids = text_ids(export, case)
    expected = cpu_logits(exported(export.checkpoint, **twin_options(export.precision)), ids.tobytes())
    found = logits(decoder, ids, STEPS, slot=2)
    assert np.isfinite(found).all()
    assert min(map(cosine, found, expected)) >= FLOORS[export.precision]


def test_embeds_of_pictures_are_those_of_the_reference(export, vision):
    expected = expected_cases(export.checkpoint)["rocket"]
    tiles, _ = prompt(export.directory, "rocket", export.checkpoint)
    embeds = vision.project(vision.encode(tiles)).astype(np.float32)
    # Half precision is compared as a share of a typical element: single ones may be near 0.
    scale = expected["vision_norm"] / np.sqrt(embeds.size)
    tolerance = 1e-3 if export.precision == "float32" else 0.03
    np.testing.assert_allclose(embeds[0, 0, :6], expected["vision_first"], atol=tolerance * scale)
    np.testing.assert_allclose(embeds[-1, -1, -6:], expected["vision_last"], atol=tolerance * scale)
    assert np.linalg.norm(embeds.astype(np.float64)) == pytest.approx(expected["vision_norm"], rel=tolerance)


def test_a_tile_does_not_depend_on_its_neighbours(export, vision):
    tiles, _ = prompt(export.directory, "rocket", export.checkpoint)
    together, alone = vision.encode(tiles[:4]), vision.encode(tiles[3:4])
    assert cosine(together[3], alone[0]) >= FLOORS["float16"]


@pytest.mark.parametrize("case", CASES)
def test_float32_answers_equal_the_reference(checkpoint, case, exported, provider):
    directory = exported(checkpoint, **options("float32", "standard"))
    expected = expected_cases(checkpoint)[case]
    with Engine.load(directory, slots=2, context_tokens=4096, provider=provider) as engine:
        answer = engine.chat(case_messages(expected), **case_options(expected))
    assert list(answer.choices[0].token_ids) == expected["greedy_ids"]
    assert answer.text == expected["text"].strip()
