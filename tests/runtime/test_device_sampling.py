"""Tokens that the graphs draw on a device are those that the numpy sampler draws; the graphs run on the CPU here."""

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from tests.runtime.engine_fakes import HostDriver

from vitrail import session
from vitrail.core import GenerateOptions
from vitrail.providers import Cpu
from vitrail.sample import Draw, Sampler, draw
from vitrail.session.cuda_buffers import Buffers, Device
from vitrail.session.cuda_memory import Port
from vitrail.session.cuda_sampler import DeviceSampler
from vitrail_export.sampling import CANDIDATES, write_graphs

VOCAB = 3001
GRAPHS = ("greedy", "sampler")


@pytest.fixture(scope="module")
def draw_there():
    """draw_there(logits [m, vocab], draws) -> token ids and whether they are exact"""

    @cache
    def made(rows, vocab):
        device = Device(Cpu(threads=1), HostDriver(), graphs=True, name="cpu")
        ports = [Port("logits", "float32", (rows, vocab)), *DeviceSampler.ports(rows)]
        return Buffers(device, ports, {}), DeviceSampler(device, vocab=vocab)

    def run(logits, draws):
        buffers, sampler = made(*logits.shape)
        buffers.put("logits", logits)
        buffers.settle()
        return sampler.draw(buffers, draws)

    return run


def random_logits(rows, vocab=VOCAB, *, scale=4.0):
    """Most of the mass is on few tokens, as in a language model's."""
    return (np.random.default_rng(0).exponential(size=(rows, vocab)) * scale).astype(np.float32)


def test_greedy_is_the_largest_logit_and_the_lowest_id_among_equals(draw_there):
    logits = random_logits(64).round(0)  # full of ties
    logits[3] = 1.5
    logits[4, [17, 700, 3000]] = 99
    ids, exact = draw_there(logits, [Draw()] * 64)
    assert exact.all()
    np.testing.assert_array_equal(ids, logits.argmax(1))


FILTERS = [
    {},
    {"top_k": 1},
    {"top_k": 50},
    {"top_k": CANDIDATES - 1},
    {"top_p": 0.9},
    {"top_p": 0.05},
    {"min_p": 0.1},
    {"top_k": 40, "top_p": 0.8},
    {"top_k": 40, "min_p": 0.02},
    {"top_p": 0.95, "min_p": 0.05},
    {"top_k": 300, "top_p": 0.99, "min_p": 0.001},
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_a_uniform_draws_the_token_that_it_draws_in_numpy(draw_there, filters, temperature):
    rows = 100
    logits = random_logits(rows)
    logits[::5] = logits[::5].round(0)  # ties
    uniforms = np.random.default_rng(1).random(rows)
    draws = [Draw(temperature, uniform=float(u), **filters) for u in uniforms]
    ids, exact = draw_there(logits, draws)
    expected = [draw(row, each, each.uniform) for row, each in zip(logits, draws, strict=True)]
    assert exact.mean() >= 0.8  # where ties reach beyond what is ranked, it is not
    np.testing.assert_array_equal(ids[exact], np.array(expected)[exact])


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_draw_tokens_that_have_weight(draw_there, uniform):
    logits = np.full((1, VOCAB), -1e4, np.float32)
    logits[0, [5, 2000, 2999]] = 0
    for filters in ({}, {"top_k": 9}, {"top_p": 0.99}):
        each = Draw(1.0, uniform=uniform, **filters)
        ids, exact = draw_there(logits, [each])
        assert exact.all()
        assert ids[0] == draw(logits[0], each, uniform)


def test_greedy_and_drawn_rows_share_a_run(draw_there):
    logits = random_logits(3)
    ids, exact = draw_there(logits, [Draw(), Draw(1.0, uniform=0.9), Draw()])
    assert exact.all()
    assert ids.tolist() == [logits[0].argmax(), draw(logits[1], Draw(1.0), 0.9), logits[2].argmax()]


@pytest.mark.parametrize("each", [Draw(1.0, top_k=CANDIDATES), Draw(1.5, top_p=0.999, uniform=0.5)])
def test_what_needs_more_tokens_than_are_ranked_is_said_to_be_inexact(draw_there, each):
    flat = random_logits(1, scale=0.01)
    assert not draw_there(flat, [each]).exact.any()


def test_equal_logits_are_ranked_by_their_ids(draw_there):
    """As those of half precision often are."""
    logits = random_logits(50).astype(np.float16).astype(np.float32).round(1)
    draws = [Draw(3.0, top_k=200, uniform=i / 50) for i in range(50)]
    ids, exact = draw_there(logits, draws)
    assert len(np.unique(logits[0, logits[0].argsort()[-200:]])) < 100
    assert exact.all()
    assert ids.tolist() == [draw(row, each, each.uniform) for row, each in zip(logits, draws, strict=True)]


def test_equals_of_the_last_token_that_is_ranked_make_a_draw_inexact(draw_there):
    logits = np.zeros((2, VOCAB), np.float32)
    logits[:, :100] = 1
    _, exact = draw_there(logits, [Draw(1.0, top_k=100, uniform=0.9), Draw(1.0, top_k=101, uniform=0.9)])
    assert exact.tolist() == [True, False]


def test_a_small_vocabulary_is_ranked_whole(draw_there):
    logits = random_logits(20, vocab=40)
    draws = [Draw(2.0, top_k=600, top_p=0.9, uniform=i / 20) for i in range(20)]
    ids, exact = draw_there(logits, draws)
    assert exact.all()
    assert ids.tolist() == [draw(row, each, each.uniform) for row, each in zip(logits, draws, strict=True)]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("plan", [Draw(), Draw(0.7, top_k=5, uniform=0.3)], ids=["greedy", "drawn"])
def test_logits_that_are_not_finite_are_left_to_the_host(draw_there, bad, plan):
    logits = random_logits(3)
    logits[1, 77] = bad
    assert draw_there(logits, [plan] * 3).exact.tolist() == [True, False, True]


@pytest.mark.parametrize("name", GRAPHS)
def test_the_graphs_in_the_runtime_are_those_that_the_export_builds(tmp_path, name):
    write_graphs(tmp_path)
    fresh, kept = (
        onnx.load(directory / f"{name}.onnx") for directory in (tmp_path, Path(session.__file__).parent)
    )
    assert list(fresh.graph.node) == list(kept.graph.node)
    assert list(fresh.graph.initializer) == list(kept.graph.initializer)
    ort.InferenceSession(kept.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.5},
        {"frequency_penalty": -0.5},
        {"logprobs": 0},
    ],
    ids=str,
)
def test_what_needs_the_logits_plans_no_draw(options):
    assert Sampler(GenerateOptions(**options)).plan() is None


def test_a_plan_stays_until_its_token_is_there_and_the_next_goes_on_as_sampling_would():
    options, logits = GenerateOptions(temperature=1.0, top_k=50), random_logits(6)
    here, there = Sampler(options, seed=3), Sampler(options, seed=3)
    for row in logits:
        expected, _ = here.sample(row)
        plan = there.plan()
        assert there.plan() == plan
        token_id = draw(row, plan, plan.uniform)
        assert token_id == expected
        there.take(token_id)
