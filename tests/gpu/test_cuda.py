"""What only onnxruntime's CUDA provider can show: captured decode steps, and tokens drawn on the device."""

import gc

import numpy as np
import pytest
from tests.runtime.trt.steps import a_conversation, step

from vitrail.errors import OptionError
from vitrail.manifest import load_manifest
from vitrail.providers import Cuda
from vitrail.sample import Draw, draw
from vitrail.session.cuda_driver import LibCuda
from vitrail.session.open import open_decoder, open_vision

HALF = {"activations": "float16", "vision_precision": "float16"}
FORMS = [
    {"precision": "float16", **HALF},
    {"precision": "int4", **HALF},
    {"precision": "float16", "dialect": "standard", **HALF},
    {"precision": "bfloat16", "vision_precision": "bfloat16"},
    {"precision": "int4", "activations": "bfloat16", "vision_precision": "bfloat16"},
]


@pytest.fixture(scope="module", params=FORMS, ids=str)
def opened(request, exported, provider):
    """opened(graphs=...) -> a decoder session on the GPU"""
    if not isinstance(provider, Cuda):
        pytest.skip("for provider cuda")
    directory = exported("internvl2-tiny", **request.param)

    def open_session(*, graphs=True, slots=6):
        device = Cuda(provider.device_id, graphs=graphs)
        return open_decoder(directory, load_manifest(directory), device, slots=slots, capacity=512)

    open_session.tolerance = 0.08 if "bfloat16" in request.param.values() else 0.02
    return open_session


def close(found, expected, opened):
    """Equal but for the rounding of half precision, which depends on how a kernel parts the work."""
    return np.abs(found - expected).max() <= opened.tolerance * np.abs(expected).max()


def test_captured_steps_give_the_logits_of_eager_ones(opened):
    eager, captured = opened(graphs=False), opened()
    for _ in range(2):  # captured, then replayed
        for expected, found in zip(a_conversation(eager), a_conversation(captured), strict=True):
            assert found.size == 0 or close(found, expected, opened)


def test_rows_beside_a_step_keep_what_they_cached(opened):
    alone, beside = opened(), opened()
    for session in (alone, beside):
        session.forward(step(session, 1, [0], new=40))
    for i in range(3):
        beside.forward(step(beside, 0, [i], wanted=[0]))
        beside.forward(step(beside, 2, [i, 0, 0], wanted=[0, 1, 2]))
    expected, found = (each.forward(step(each, 1, [40], wanted=[0])) for each in (alone, beside))
    assert close(found, expected, opened)


def test_a_copied_prefix_answers_as_its_source(opened):
    session = opened()
    session.forward(step(session, 0, [0], new=30))
    session.copy(0, 3, 20)
    again = step(session, 0, [20], wanted=[0])
    expected = session.forward(again)
    found = session.forward(type(again)(3, again.inputs_embeds, again.past_lengths, again.logit_positions))
    assert close(found, expected, opened)


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"temperature": 1.0, "top_k": 50},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 1.2, "min_p": 0.05},
        {"temperature": 1.0},
    ],
    ids=str,
)
def test_the_device_draws_what_numpy_draws_from_its_logits(opened, filters):
    """Greedily always; else but for a uniform that falls between two tokens closer than float32 tells them apart."""
    session = opened()
    uniforms = np.random.default_rng(0).random((100, 6))
    same = []
    for position, row in enumerate(uniforms):
        given = step(session, 0, [position] * 6, wanted=range(6))
        draws = [Draw(uniform=float(each), **filters) for each in row]
        found = session.sample(given, draws)
        logits = session.forward(given)
        for each, token, scores in zip(draws, found, logits, strict=True):
            if isinstance(token, int):
                expected = draw(scores, each, each.uniform) if each.temperature else scores.argmax()
                same.append(token == expected)
    assert len(same) > 500
    assert all(same) if not filters else np.mean(same) > 0.99


def test_memory_is_given_back_with_the_session(opened, provider):
    driver = LibCuda(provider.device_id)
    free_bytes = []
    for _ in range(4):
        session = opened()
        session.sample(step(session, 0, [0], wanted=[0]), [Draw()])
        del session
        gc.collect()
        free_bytes.append(driver.memory_bytes()[0])
    assert free_bytes[0] - free_bytes[-1] < 64 << 20


def test_what_has_no_kernel_on_the_gpu_is_refused_by_name(exported, provider):
    if not isinstance(provider, Cuda):
        pytest.skip("for provider cuda")
    directory = exported("internvl2-tiny", precision="float32", vision_precision="int8")
    manifest = load_manifest(directory)
    with pytest.raises(OptionError, match="no kernel for, GroupQueryAttention"):
        open_decoder(directory, manifest, provider, slots=1, capacity=64)
    with pytest.raises(OptionError, match=r"no kernel for, .*DynamicQuantizeMatMul"):
        open_vision(directory, manifest, provider)
