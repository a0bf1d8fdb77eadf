"""The reference cases for sessions of every kind: their prompts, teacher-forced logits, embeds, and a CPU's figures beside."""

from functools import cache
from typing import Any

import numpy as np
import pytest
from tests.conftest import IMAGES, case_messages, case_options, expected_cases

from vitrail.engine import Engine
from vitrail.manifest import load_manifest
from vitrail.providers import Cpu
from vitrail.session import Step
from vitrail.session.open import open_decoder

CASES = tuple(IMAGES)
PICTURED = tuple(case for case, images in IMAGES.items() if images)
FLOORS = {"float32": 0.99999, "float16": 0.999, "bfloat16": 0.998, "int8": 0.998, "int4": 0.998}
STEPS = 6
CONTEXT_TOKENS = 4096


def twin_options(precision):
    """The same weights, computed in float32: the ort dialect's int4 would quantize activations on a CPU."""
    kept = precision if precision in ("int4", "int8") else "float32"
    return {
        "precision": kept,
        "dialect": "standard",
        "vision_precision": "float32",
        "activations": "float32",
    }


@cache
def prompt(directory, case, checkpoint):
    """(tiles, token ids) of a reference case."""
    with Engine.load(directory, slots=1, context_tokens=4096) as engine:
        expected = expected_cases(checkpoint)[case]
        found = engine.prompt(case_messages(expected), max_tiles=case_options(expected)["max_tiles"])
    return found.tiles, np.array(found.token_ids, np.int32)


def text_ids(directory, case, checkpoint):
    """The case's last ids: what a decoder predicts after them does not need its pictures."""
    return prompt(directory, case, checkpoint)[1][-600:]


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


@cache
def cpu_answer(directory, case, checkpoint):
    """A CPU's, as `asked` for it; `directory` with what `twin_options` export."""
    with Engine.load(directory, slots=1, context_tokens=CONTEXT_TOKENS) as engine:
        return asked(engine, case, checkpoint)


def asked(engine, case, checkpoint):
    """The answer to a reference case, with logprobs."""
    expected = expected_cases(checkpoint)[case]
    return engine.chat(case_messages(expected), **case_options(expected), logprobs=20).choices[0]


def assert_embeds_of(case, embeds, checkpoint, *, tolerance):
    """Half precision is compared as a share of a typical element: single ones may be near 0."""
    expected, embeds = expected_cases(checkpoint)[case], embeds.astype(np.float32)
    scale = expected["vision_norm"] / np.sqrt(embeds.size)
    np.testing.assert_allclose(embeds[0, 0, :6], expected["vision_first"], atol=tolerance * scale)
    np.testing.assert_allclose(embeds[-1, -1, -6:], expected["vision_last"], atol=tolerance * scale)
    assert np.linalg.norm(embeds.astype(np.float64)) == pytest.approx(expected["vision_norm"], rel=tolerance)
