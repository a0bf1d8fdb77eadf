"""TensorRT and TensorRT for RTX on the GPU that is here: engines built for it, beside ONNX Runtime on the CPU."""

import gc
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.gpu.agreement import cosine
from tests.gpu.engines import BUILDERS, build
from tests.runtime.trt.steps import a_conversation, step

from vitrail.errors import OptionError, VitrailError
from vitrail.manifest import load_manifest
from vitrail.providers import Cpu, TensorRt
from vitrail.sample import Draw, draw
from vitrail.session import trt as trt_sessions
from vitrail.session.open import open_decoder, open_vision

CHECKPOINT, SLOTS, CAPACITY = "internvl3-tiny", 4, 512
FLOOR = {"fp16": 0.999, "bf16": 0.99}


@pytest.fixture(scope="module", params=BUILDERS)
def builder(request):
    return request.param


@pytest.fixture(scope="module", params=sorted(FLOOR))
def precision(request):
    return request.param


@pytest.fixture(scope="module")
def directory(builder, precision, exported, tmp_path_factory):
    export = exported(CHECKPOINT, precision="float16", vision_precision="float16", dialect="standard")
    shape = {"slots": SLOTS, "context_tokens": CAPACITY}
    return build(export, tmp_path_factory.mktemp("engines"), builder=builder, precision=precision, **shape)


@pytest.fixture(scope="module")
def manifest(directory):
    return load_manifest(directory)


@pytest.fixture(scope="module")
def machine(builder):
    """One for all tests, so that what a session gives back shows in its driver's memory."""
    return trt_sessions.open_machine(TensorRt(rtx=builder == "tensorrt-rtx"))


@pytest.fixture(params=[True, False], ids=["graphs", "no graphs"])
def trt(request, builder):
    return TensorRt(graphs=request.param, rtx=builder == "tensorrt-rtx")


@pytest.fixture
def decoder(directory, manifest, trt):
    return open_decoder(directory, manifest, trt, slots=SLOTS, capacity=CAPACITY)


def test_a_conversation_has_the_cpus_logits(directory, manifest, decoder, precision):
    other = open_decoder(directory, manifest, Cpu(), slots=SLOTS, capacity=CAPACITY)
    for found, expected in zip(a_conversation(decoder), a_conversation(other), strict=True):
        assert found.shape == expected.shape
        assert np.isfinite(found).all()
        assert not found.size or cosine(found, expected) >= FLOOR[precision]


def test_a_step_that_is_run_again_as_a_graph_has_the_same_logits(decoder):
    decoder.forward(step(decoder, 0, [0], new=40))
    runs = [decoder.forward(step(decoder, 0, [40, 0], wanted=[0, 1])) for _ in range(5)]
    for again in runs[1:]:
        np.testing.assert_allclose(again, runs[0], atol=1e-2)


def test_idle_slots_keep_what_they_cached(decoder):
    decoder.forward(step(decoder, 3, [0], new=100))
    before = decoder.forward(step(decoder, 3, [100], wanted=[0]))
    for i in range(5):
        decoder.forward(step(decoder, 1, [i, i], wanted=[0]))
    np.testing.assert_allclose(decoder.forward(step(decoder, 3, [100], wanted=[0])), before, atol=1e-2)


def test_greedy_tokens_are_those_of_the_largest_logits(decoder):
    decoder.forward(step(decoder, 0, [0], new=64))
    for _ in range(4):
        at = step(decoder, 0, [64, 0, 0], wanted=[0, 1, 2])
        tokens, logits = decoder.sample(at, [Draw()] * 3), decoder.forward(at)
        assert all(logits[i, token] >= logits[i].max() - 1e-2 for i, token in enumerate(tokens))


def test_the_device_draws_what_the_host_draws_from_its_logits(decoder):
    """As far as it is sure of them. A step that is run again may round otherwise, hence a few."""
    filters = ({}, {"top_k": 20}, {"top_p": 0.9}, {"min_p": 0.05})
    uniforms, same = iter(np.random.default_rng(0).random(200)), []
    for i in range(40):
        at = step(decoder, 0, [i, 0, 0], wanted=[0, 1, 2])
        draws = [Draw(0.05, uniform=float(next(uniforms)), **filters[i % 4]) for _ in range(3)]
        found, logits = decoder.sample(at, draws), decoder.forward(at)
        same += [
            token == draw(scores, each, each.uniform)
            for each, token, scores in zip(draws, found, logits, strict=True)
            if isinstance(token, int)
        ]
    assert len(same) > 100
    assert np.mean(same) > 0.95


def test_pictures_have_the_cpus_embeds(directory, manifest, trt, precision):
    vision, other = (open_vision(directory, manifest, each) for each in (trt, Cpu()))
    tiles = np.random.default_rng(0).integers(0, 256, (4, 3, 448, 448), np.uint8)
    expected = other.project(other.encode(tiles))
    for _ in range(4):
        assert cosine(vision.project(vision.encode(tiles)), expected) >= FLOOR[precision]


def test_memory_comes_back_when_a_session_is_gone(directory, manifest, trt, machine):
    def free_bytes():
        gc.collect()
        machine.driver.activate()
        return machine.driver.memory_bytes()[0]

    def use():
        session = open_decoder(directory, manifest, trt, slots=SLOTS, capacity=CAPACITY)
        list(a_conversation(session))

    use()  # what libraries keep once and for all
    before = free_bytes()
    for _ in range(3):
        use()
    assert before - free_bytes() < 64 << 20


def test_an_engine_for_another_gpu_is_refused(directory, manifest, trt, machine):
    foreign = tuple(each.model_copy(update={"targets": ("sm_53",)}) for each in manifest.engines)
    changed = manifest.model_copy(update={"engines": foreign})
    with pytest.raises(
        VitrailError, match=f"{machine.driver.gpu.target} is needed; build one with: vitrail engine"
    ):
        open_vision(directory, changed, trt)


def with_slots(engine, name, slots):
    """A record whose profile `name` takes so many rows."""
    inputs = {
        key: shapes.model_copy(update={"max": (slots, *shapes.max[1:])})
        for key, shapes in engine.profile(name).inputs.items()
    }
    profiles = tuple(
        each.model_copy(update={"inputs": inputs}) if each.name == name else each for each in engine.profiles
    )
    return engine.model_copy(update={"profiles": profiles})


def test_more_memory_than_there_is_is_refused_before_loading(directory, manifest, trt):
    rows = {"decoder": "decode", "sampler": "rows"}
    huge = tuple(
        with_slots(each, rows[each.stage], 1 << 20) if each.stage in rows else each
        for each in manifest.engines
    )
    changed = manifest.model_copy(update={"engines": huge})
    with pytest.raises(OptionError, match="GPU memory are needed"):
        open_decoder(directory, changed, trt, slots=1 << 20, capacity=CAPACITY)


def test_a_corrupt_engine_is_refused_by_name(directory, manifest, trt, tmp_path):
    made = Path(shutil.copytree(directory, tmp_path / "copy"))
    file = made / manifest.artifacts[manifest.engines[0].artifact].path
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    file.write_bytes(damaged)
    with pytest.raises(
        VitrailError, match="does not match its hash in the manifest: damaged; build it again"
    ):
        open_vision(made, manifest, trt)
