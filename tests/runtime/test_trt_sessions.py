"""TensorRT sessions on a GPU and engines that keep TensorRT's rules and compute on the CPU, beside ONNX Runtime's."""

import gc
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tests.runtime.engine_fakes import FakeContext, FakePlan, fake_machine, with_engines

from vitrail.engine import Engine
from vitrail.errors import ArtifactError, InvalidInput, OptionError, ServerError
from vitrail.manifest import load_manifest
from vitrail.providers import TensorRt
from vitrail.sample import Draw
from vitrail.session import Step
from vitrail.session.ort import OrtDecoder, OrtVision
from vitrail.session.trt import TrtDecoder, TrtVision

SLOTS, CAPACITY, CHUNK, TILES = 4, 512, 32, 3
BUILDERS = ("tensorrt", "tensorrt-rtx")


@pytest.fixture(scope="module")
def directory(exported, tmp_path_factory):
    export = exported("internvl3-tiny", precision="float16", vision_precision="float16", dialect="standard")
    made = shutil.copytree(export, tmp_path_factory.mktemp("engines") / "export")
    for builder in BUILDERS:
        with_engines(made, builder=builder, slots=SLOTS, capacity=CAPACITY, chunk=CHUNK, tiles=TILES)
    return made


@pytest.fixture(scope="module")
def manifest(directory):
    return load_manifest(directory)


@pytest.fixture(scope="module")
def onnxruntime_decoder(directory, manifest):
    return lambda: OrtDecoder(directory, manifest, slots=SLOTS, capacity=CAPACITY)


@pytest.fixture
def opened(directory, manifest):
    """opened(kind, ...) -> (session, machine)"""

    def open_session(kind, *, builder="tensorrt", graphs=True, machine=None, manifest=manifest, **options):
        machine = machine or fake_machine(builder=builder)
        provider = TensorRt(graphs=graphs, rtx=builder == "tensorrt-rtx")
        return kind(directory, manifest, provider=provider, machine=machine, **options), machine

    return open_session


@pytest.fixture
def decoder(opened):
    def open_decoder(*, slots=SLOTS, capacity=CAPACITY, **options):
        return opened(TrtDecoder, slots=slots, capacity=capacity, **options)

    return open_decoder


def step(session, first, past, *, new=1, wanted=()):
    """Tokens that depend on the slot and on their position."""
    rows = np.arange(first, first + len(past))[:, None]
    ids = (rows * 131 + np.array(past)[:, None] + np.arange(new) * 7) % 1000
    return Step(
        first, session.embed(ids.astype(np.int32)), np.array(past, np.int32), np.array(wanted, np.int64)
    )


def launches(machine):
    (stream,) = machine.driver.streams
    return stream.launched


def a_conversation(session):
    """Prompts of slots 0, 2 and 3, decoding together and alone, with rows that are carried along; all logits."""
    yield session.forward(step(session, 0, [0], new=70, wanted=[69]))
    yield session.forward(step(session, 2, [0], new=33))
    for i in range(4):
        yield session.forward(step(session, 0, [70 + i, 0, 33 + i], wanted=[0, 2]))
    yield session.forward(step(session, 3, [0], new=5, wanted=[1, 4]))
    for i in range(4):
        yield session.forward(step(session, 2, [37 + i, 5 + i], wanted=[1]))
    session.copy(0, 1, 40)
    yield session.forward(step(session, 1, [40], new=3, wanted=[2]))
    for i in range(4):
        yield session.forward(step(session, 1, [43 + i, 41 + i], wanted=[0, 1]))
    yield session.forward(step(session, 3, [9], wanted=[0]))


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("builder", BUILDERS)
def test_a_conversation_has_onnxruntimes_logits(decoder, onnxruntime_decoder, builder, graphs):
    session, _ = decoder(builder=builder, graphs=graphs)
    pairs = list(zip(a_conversation(session), a_conversation(onnxruntime_decoder()), strict=True))
    for found, expected in pairs:
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-3)
    assert max(np.abs(expected).max() for _, expected in pairs if expected.size) > 0.1


def test_greedy_tokens_are_found_on_the_device_and_logits_come_for_other_draws(decoder, onnxruntime_decoder):
    session, other = decoder()[0], onnxruntime_decoder()
    draws = [Draw(), None, Draw(temperature=0.7, uniform=0.3), Draw()]
    for i in range(4):
        found = session.sample(step(session, 0, [i] * 4, wanted=[0, 1, 2, 3]), draws)
        expected = other.forward(step(other, 0, [i] * 4, wanted=[0, 1, 2, 3]))
        assert [type(each) for each in found] == [int, np.ndarray, np.ndarray, int]
        assert [found[0], found[3]] == [expected[0].argmax(), expected[3].argmax()]
        np.testing.assert_allclose(found[1:3], expected[1:3], atol=1e-3)


def test_tokens_of_a_long_prompt_come_in_order(decoder, onnxruntime_decoder):
    session, other = decoder()[0], onnxruntime_decoder()
    found = session.sample(step(session, 0, [0], new=3 * CHUNK, wanted=[5, 40, 95]), [Draw(), None, Draw()])
    expected = other.forward(step(other, 0, [0], new=3 * CHUNK, wanted=[5, 40, 95]))
    assert (found[0], found[2]) == (expected[0].argmax(), expected[2].argmax())
    np.testing.assert_allclose(found[1], expected[1], atol=1e-3)
    assert session.sample(step(session, 1, [0], new=7), []) == []


def test_more_logits_than_a_run_computes_come_in_parts(decoder, onnxruntime_decoder):
    session, other = decoder()[0], onnxruntime_decoder()
    found, expected = (
        each.forward(step(each, 2, [0], new=50, wanted=range(30, 50))) for each in (session, other)
    )
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_logits_that_are_not_finite_are_left_to_the_sampler(decoder):
    session, _ = decoder()
    broken = Step(0, np.full((1, 1, 112), np.nan, np.float16), np.zeros(1, np.int32), np.array([0]))
    (found,) = session.sample(broken, [Draw()])
    assert not np.isfinite(found).all()


def test_a_decode_step_that_comes_again_becomes_a_graph(decoder):
    session, machine = decoder()
    for i in range(5):
        assert launches(machine) == max(0, i - 2)
        session.forward(step(session, 0, [i, i], wanted=[0, 1]))
    shared, captured = machine.library.contexts
    assert (shared.captured, captured.captured) == (False, True)


def test_steps_over_the_same_block_share_a_graph(decoder):
    session, machine = decoder()
    for i in range(4):
        session.forward(step(session, 0, [i] * 3, wanted=[0]))
    session.forward(step(session, 1, [9, 9, 9], wanted=[0, 2]))
    assert launches(machine) == 3


def test_no_more_graphs_are_kept_than_is_allowed(decoder, monkeypatch):
    monkeypatch.setattr("vitrail.session.trt_runner.GRAPHS_KEPT", 2)
    session, machine = decoder()
    runner = session._workspace._runners["decoder"]
    runner._kept = 2
    for i in range(3):
        for slot in range(SLOTS):
            session.forward(step(session, slot, [i], wanted=[0]))
    assert len(runner._recorded) == 2
    assert launches(machine) == 0


def test_prompts_are_no_graphs(decoder):
    session, machine = decoder()
    for _ in range(5):
        session.forward(step(session, 0, [0], new=CHUNK, wanted=[CHUNK - 1]))
    assert launches(machine) == 0
    assert len(machine.library.contexts) == 1


def test_graphs_off_captures_nothing_and_covers_the_steps_own_slots(decoder):
    session, machine = decoder(graphs=False)
    for i in range(5):
        session.forward(step(session, 1, [i, i], wanted=[0]))
    (context,) = machine.library.contexts
    assert context.shapes["past_lengths"] == (2,)
    assert launches(machine) == 0


def test_tensorrt_for_rtx_captures_by_itself(decoder):
    session, machine = decoder(builder="tensorrt-rtx")
    for i in range(5):
        session.forward(step(session, 0, [i], wanted=[0]))
    assert launches(machine) == 0
    assert [context.graphs for context in machine.library.contexts] == [False, True]


def test_a_slot_that_is_full_to_its_end_keeps_its_last_token(decoder, onnxruntime_decoder):
    session, other = decoder()[0], onnxruntime_decoder()
    for each in (session, other):
        each.forward(step(each, 1, [0], new=CAPACITY))
        each.forward(step(each, 0, [0], new=3))
        for i in range(4):
            each.forward(step(each, 2, [i], wanted=[0]))
            each.forward(step(each, 0, [3 + i], wanted=[0]))
            each.forward(
                Step(
                    0,
                    each.embed(np.zeros((4, 1), np.int32)),
                    np.array([8 + i, 511, 4 + i, 0], np.int32),
                    np.array([0]),
                )
            )
    found, expected = (each.forward(step(each, 1, [CAPACITY - 1], wanted=[0])) for each in (session, other))
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_idle_slots_keep_what_they_cached(decoder, onnxruntime_decoder):
    session, other = decoder()[0], onnxruntime_decoder()
    for each in (session, other):
        each.forward(step(each, 3, [0], new=CAPACITY - 1))
        each.forward(step(each, 1, [0, 0], wanted=[0]))
        each.forward(step(each, 1, [1, 1], wanted=[0]))
    found, expected = (each.forward(step(each, 3, [CAPACITY - 1], wanted=[0])) for each in (session, other))
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_step_beyond_the_capacity_that_was_asked_for_is_refused(decoder):
    session, _ = decoder(capacity=100)
    assert session.capacity == 100
    with pytest.raises(InvalidInput, match="98 cached and 3 new tokens exceed the slot's capacity of 100"):
        session.forward(step(session, 0, [98], new=3))


def test_a_step_that_no_profile_takes_is_refused_by_name(decoder):
    session, _ = decoder()
    wide = Step(0, session.embed(np.zeros((2, 3), np.int32)), np.zeros(2, np.int32), np.array([0]))
    words = (
        r"a step of \[2, 3, 112\] with 1 logits is outside profile 'prefill' .* takes \[1, 32, 112\] with 4"
    )
    with pytest.raises(InvalidInput, match=words):
        session.forward(wide)


def test_all_memory_is_allocated_at_the_start_and_given_back_at_the_end(decoder, opened):
    machine = fake_machine()
    session, _ = decoder(machine=machine)
    vision, _ = opened(TrtVision, machine=machine)
    held = machine.driver.memory_bytes()
    assert len(machine.driver.held) == 2
    list(a_conversation(session))
    vision.encode(np.zeros((4, 3, 448, 448), np.uint8))
    assert machine.driver.memory_bytes() == held
    machine.library.contexts.clear()
    del session, vision
    gc.collect()
    assert not machine.driver.held
    assert not machine.driver.streams


def test_pictures_have_onnxruntimes_features_and_embeds(opened, directory, manifest):
    vision, machine = opened(TrtVision)
    other = OrtVision(directory, manifest)
    tiles = np.random.default_rng(0).integers(0, 256, (4, 3, 448, 448), np.uint8)
    features = other.encode(tiles)
    embeds = other.project(features)
    for count in (0, 2, 4, 4, 4):
        found = vision.encode(tiles[:count])
        assert found.dtype == np.float16
        np.testing.assert_allclose(found, features[:count], atol=2e-2)
        np.testing.assert_allclose(vision.project(features[:count]), embeds[:count], atol=2e-2)
        np.testing.assert_allclose(vision.see(tiles[:count]), embeds[:count], atol=2e-2)
    assert launches(machine) > 0


def test_one_stage_alone_loads_one_engine(opened):
    vision, machine = opened(TrtVision, stages=("projector",))
    assert vision.project(np.zeros((1, 256, vision.contract.feature_size), np.float16)).shape[0] == 1
    assert {context.plan.record.stage for context in machine.library.contexts} == {"projector"}


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1, 3, 224, 224), np.uint8), ((1, 3, 448, 448), np.float32), ((3, 448, 448), np.uint8)],
)
def test_tiles_of_another_form_are_refused(opened, shape, dtype):
    vision, _ = opened(TrtVision, stages=("vision_encoder",))
    with pytest.raises(InvalidInput, match=r"this model takes uint8 \[n, 3, 448, 448\]"):
        vision.encode(np.zeros(shape, dtype))


def test_features_of_another_form_are_refused(opened):
    vision, _ = opened(TrtVision, stages=("projector",))
    with pytest.raises(InvalidInput, match=r"this model takes \[n, 256, "):
        vision.project(np.zeros((1, 255, vision.contract.feature_size), np.float16))


def test_too_little_memory_is_refused_before_weights_are_read(decoder, monkeypatch):
    machine = fake_machine(free_bytes=1 << 19)
    monkeypatch.setattr(machine.library, "read", None)
    with pytest.raises(OptionError) as refused:
        decoder(machine=machine)
    for words in (
        "of GPU memory are needed",
        "weights of decoder",
        "KV cache 0.50 MiB",
        "Fake GPU",
        "smaller --context",
    ):
        assert words in str(refused.value)


def test_too_little_memory_for_activations_is_refused_before_anything_is_allocated(decoder, monkeypatch):
    monkeypatch.setattr(FakePlan, "activation_bytes", 3 << 30)
    machine = fake_machine()
    with pytest.raises(OptionError, match=r"6\.00 GiB of GPU memory are needed \(activations 6.00 GiB"):
        decoder(machine=machine)
    assert not machine.driver.held


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            {"slots": 5},
            "slots is 5, the decoder's engine was built for 4; lower it to that, or build one with: .* --slots 5",
        ),
        (
            {"capacity": 513},
            "context_tokens is 513, the decoder's engine was built for 512; .* --decoder .*--context 513",
        ),
    ],
)
def test_more_than_the_engine_was_built_for_is_refused_with_the_command_that_builds_it(decoder, asked, words):
    with pytest.raises(OptionError, match=words):
        decoder(**asked)


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (
            {"target": "sm_90"},
            "decoder has engines for tensorrt on sm_89.* tensorrt on sm_90 is needed; build one with: vitrail engine",
        ),
        (
            {"version": "10.17.1"},
            "was built by tensorrt 10.16.0, 10.17.1 is installed; build one with: vitrail engine",
        ),
    ],
)
def test_an_engine_for_another_gpu_or_version_is_refused_with_the_command_that_builds_it(
    decoder, machine, words
):
    with pytest.raises(ArtifactError, match=words):
        decoder(machine=fake_machine(**machine))


def changed(manifest, stage, **update):
    """The manifest with another record of one stage's engine."""
    engines = tuple(
        engine.model_copy(update=update) if (engine.stage, engine.builder) == (stage, "tensorrt") else engine
        for engine in manifest.engines
    )
    return manifest.model_copy(update={"engines": engines})


def test_an_engine_that_its_record_does_not_describe_is_refused(opened, decoder, manifest):
    other = changed(manifest, "projector", dtype="float32")
    with pytest.raises(ArtifactError, match="'embeds' should be float32, in the engine it is float16; build"):
        opened(TrtVision, manifest=other, stages=("projector",))
    with pytest.raises(
        ArtifactError, match=r"differ in dtype \(vision_encoder float16, projector float32\); build"
    ):
        opened(TrtVision, manifest=other)
    decode = changed(manifest, "decoder", profiles=manifest.engines[2].profiles[::-1])
    with pytest.raises(
        ArtifactError, match="profile 'prefill' of the engine of decoder takes 'inputs_embeds'"
    ):
        decoder(manifest=decode)
    fewer = changed(manifest, "vision_encoder", profiles=manifest.engines[0].profiles * 2)
    with pytest.raises(ArtifactError, match="the engine of vision_encoder has 1 profiles, its record 2"):
        opened(TrtVision, manifest=fewer)


def test_an_engine_that_does_not_write_its_cache_in_place_is_refused(decoder, monkeypatch):
    monkeypatch.setattr(FakePlan, "get_aliased_input_tensor", lambda *_: None)
    with pytest.raises(
        ArtifactError, match=r"writes present\.0\.key elsewhere than in past\.0\.key; build it again"
    ):
        decoder()


@pytest.mark.parametrize("runs", [0, 1, 2, 3])
def test_a_run_that_fails_is_told_in_tensorrts_words_and_the_next_one_works(decoder, monkeypatch, runs):
    session, _ = decoder()
    for i in range(runs):
        session.forward(step(session, 0, [i], wanted=[0]))
    with monkeypatch.context() as failing:
        failing.setattr(FakeContext, "fails", True)
        if runs < 3:
            cure = "; without CUDA graphs: --provider tensorrt,graphs=off" if runs == 2 else ""
            with pytest.raises(ServerError, match=f"the engine of decoder failed: the fake's reason{cure}$"):
                session.forward(step(session, 0, [runs], wanted=[0]))
    assert np.isfinite(session.forward(step(session, 0, [runs], wanted=[0]))).all()


def test_questions_at_once_are_answered_as_by_onnxruntime(directory, monkeypatch):
    """Through the whole runtime: schedule, prefix cache, sampling on the device and on the host."""
    monkeypatch.setattr("vitrail.session.trt.open_machine", lambda _provider: fake_machine())
    questions = ["What is a window?", "What is a window made of?", "Count to ten, please."]
    options = [{"max_tokens": 12, "ignore_eos": True, "temperature": t, "seed": 7} for t in (0, 0, 0.8)]
    answers = []
    for provider in ("cpu", "tensorrt"):
        with (
            Engine.load(
                directory, slots=3, context_tokens=200, prefill_chunk=16, provider=provider
            ) as engine,
            ThreadPoolExecutor(3) as pool,
        ):
            asked = pool.map(
                lambda each: engine.chat(each[0], **each[1]), zip(questions, options, strict=True)
            )
            answers.append([answer.choices[0].token_ids for answer in asked])
    assert answers[0] == answers[1]
    assert all(len(ids) == 12 for ids in answers[0])
