"""TensorRT's decoder on engines that keep TensorRT's rules and compute on the CPU, beside ONNX Runtime's."""

import gc

import numpy as np
import pytest
from tests.runtime.engine_fakes import FakeContext, fake_machine
from tests.runtime.trt.steps import BUILDERS, CAPACITY, a_conversation, step

from vitrail.errors import InvalidInput, ServerError
from vitrail.session import Step
from vitrail.session.trt import TrtVision


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("builder", BUILDERS)
def test_a_conversation_has_onnxruntimes_logits(decoder, onnxruntime_decoder, builder, graphs):
    session, _ = decoder(builder=builder, graphs=graphs)
    pairs = list(zip(a_conversation(session), a_conversation(onnxruntime_decoder()), strict=True))
    for found, expected in pairs:
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-3)
    assert max(np.abs(expected).max() for _, expected in pairs if expected.size) > 0.1


def test_more_logits_than_a_run_computes_come_in_parts(decoder, onnxruntime_decoder):
    session, other = decoder()[0], onnxruntime_decoder()
    found, expected = (
        each.forward(step(each, 2, [0], new=50, wanted=range(30, 50))) for each in (session, other)
    )
    np.testing.assert_allclose(found, expected, atol=1e-3)


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
