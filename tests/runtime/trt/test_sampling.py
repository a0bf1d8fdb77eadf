"""Tokens that TensorRT sessions draw on the device, and what they leave to the host."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tests.runtime.engine_fakes import fake_machine
from tests.runtime.trt.steps import BUILDERS, CHUNK, SLOTS, launches, step

from vitrail.engine import Engine
from vitrail.sample import Draw, draw
from vitrail.session import Step


def test_tokens_are_drawn_on_the_device_and_logits_come_where_nothing_is_to_be_drawn(
    decoder, onnxruntime_decoder
):
    session, other = decoder()[0], onnxruntime_decoder()
    sampled = Draw(temperature=0.7, top_k=5, uniform=0.3)
    for i in range(4):
        found = session.sample(
            step(session, 0, [i] * 4, wanted=[0, 1, 2, 3]), [Draw(), None, sampled, Draw()]
        )
        expected = other.forward(step(other, 0, [i] * 4, wanted=[0, 1, 2, 3]))
        assert [type(each) for each in found] == [int, np.ndarray, int, int]
        assert [found[0], found[3]] == [expected[0].argmax(), expected[3].argmax()]
        assert found[2] == draw(expected[2], sampled, 0.3)
        np.testing.assert_allclose(found[1], expected[1], atol=1e-3)


def test_tokens_of_a_long_prompt_come_in_order(decoder, onnxruntime_decoder):
    session, other = decoder()[0], onnxruntime_decoder()
    found = session.sample(step(session, 0, [0], new=3 * CHUNK, wanted=[5, 40, 95]), [Draw(), None, Draw()])
    expected = other.forward(step(other, 0, [0], new=3 * CHUNK, wanted=[5, 40, 95]))
    assert (found[0], found[2]) == (expected[0].argmax(), expected[2].argmax())
    np.testing.assert_allclose(found[1], expected[1], atol=1e-3)
    assert session.sample(step(session, 1, [0], new=7), []) == []


def test_logits_that_are_not_finite_are_left_to_the_sampler(decoder):
    session, _ = decoder()
    broken = Step(0, np.full((1, 1, 112), np.nan, np.float16), np.zeros(1, np.int32), np.array([0]))
    (found,) = session.sample(broken, [Draw()])
    assert not np.isfinite(found).all()


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


FILTERS = ({}, {"top_k": 20}, {"top_p": 0.8}, {"min_p": 0.02}, {"top_k": 40, "top_p": 0.9, "min_p": 0.01})


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("builder", BUILDERS)
def test_every_filter_draws_the_host_s_token_from_the_device_s_logits(decoder, builder, graphs):
    session, _ = decoder(builder=builder, graphs=graphs)
    uniforms = iter(np.random.default_rng(0).random(100))
    for i, filters in enumerate(FILTERS):
        draws = [Draw(0.02, uniform=float(next(uniforms)), **filters) for _ in range(SLOTS)]
        at = step(session, 0, [i] * SLOTS, wanted=range(SLOTS))
        found, logits = session.sample(at, draws), session.forward(at)
        assert [type(token) for token in found] == [int] * SLOTS
        assert found == [draw(row, each, each.uniform) for row, each in zip(logits, draws, strict=True)]


def test_what_the_device_is_not_sure_of_is_left_to_the_host(decoder):
    """A vocabulary of 1000 is nearly flat at this temperature: 99% of it are more tokens than the device ranks."""
    session, _ = decoder()
    given = [Draw(50.0, top_p=0.99, uniform=0.5), Draw(1.0, top_k=3, uniform=0.5)]
    at = step(session, 0, [0, 0], wanted=[0, 1])
    unsure, token = session.sample(at, given)
    np.testing.assert_array_equal(unsure, session.forward(at)[0])
    assert token == draw(session.forward(at)[1], given[1], 0.5)


def test_only_what_is_drawn_runs_the_sampler_and_it_becomes_a_graph(decoder):
    session, machine = decoder()
    for i in range(5):
        session.sample(step(session, 0, [i], wanted=[0]), [Draw()])
    before, stages = launches(machine), [each.plan.record.stage for each in machine.library.contexts]
    assert (before, set(stages)) == (3, {"decoder"})
    for i in range(5, 10):
        session.sample(step(session, 0, [i], wanted=[0]), [Draw(1.0, top_k=3)])
    assert launches(machine) == before + 5 + 3
    assert [each.plan.record.stage for each in machine.library.contexts].count("sampler") == 2


def test_rows_beside_those_that_draw_have_tokens_of_their_own_kind(decoder, onnxruntime_decoder):
    """Slot 1 of a block of four is idle, slot 0 greedy, slot 2 has penalties, slot 3 draws."""
    session, other = decoder()[0], onnxruntime_decoder()
    sampled = Draw(1.0, top_p=0.5, uniform=0.99)
    found = session.sample(step(session, 0, [0] * 4, wanted=[0, 2, 3]), [Draw(), None, sampled])
    logits = other.forward(step(other, 0, [0] * 4, wanted=[0, 2, 3]))
    assert (found[0], found[2]) == (logits[0].argmax(), draw(logits[2], sampled, 0.99))
    np.testing.assert_allclose(found[1], logits[1], atol=1e-3)
