"""The graph that draws tokens beside a decoder's engine: it draws the host's, or says that it is not sure."""

import numpy as np
import onnx_ir as ir
import pytest
from tests.runtime.engine_fakes import quiet_session
from tests.runtime.test_device_sampling import FILTERS

from vitrail.errors import ExportError
from vitrail.manifest import EngineProfile, Shapes
from vitrail.sample import Draw, draw
from vitrail.session.trt_sampler import IDLE, OPTIONS, RESULTS, options_of
from vitrail_export.engine import sampler
from vitrail_export.engine.builders import open_builder
from vitrail_export.engine.compile import Journal, compile_graph, parse
from vitrail_export.engine.sampler import check_sampler, write_sampler
from vitrail_export.sampling import CANDIDATES, EXACT, sampler_graph

VOCAB = 3001


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sampler")


@pytest.fixture(scope="module")
def draw_there(folder):
    """draw_there(logits [m, VOCAB], draws) -> token ids and whether they are exact"""
    session = quiet_session(write_sampler(folder, vocab=VOCAB))
    return lambda logits, draws: session.run(list(RESULTS), {"logits": logits, **options_of(draws, VOCAB)})


def random_logits(rows, *, scale=2.0):
    """A third of them in steps of float16, a third with many equals."""
    logits = (np.random.default_rng(0).exponential(size=(rows, VOCAB)) * scale).astype(np.float32)
    logits[::3] = logits[::3].astype(np.float16)
    logits[1::3] = logits[1::3].round(1)
    return logits


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.5])
def test_a_token_that_it_is_sure_of_is_the_host_s(draw_there, filters, temperature):
    logits, uniforms = random_logits(90), np.random.default_rng(1).random(90)
    draws = [Draw(temperature, uniform=float(uniform), **filters) for uniform in uniforms]
    token_ids, exact = draw_there(logits, draws)
    expected = np.array([draw(row, each, each.uniform) for row, each in zip(logits, draws, strict=True)])
    np.testing.assert_array_equal(token_ids[exact], expected[exact])
    beyond = filters.get("top_k") == CANDIDATES - 1  # where ties reach beyond what is ranked, it is not
    assert exact.mean() >= (0.6 if beyond or temperature > 1 else 0.9)


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_weights_that_another_device_rounds_otherwise_draw_the_same_where_it_is_sure(draw_there, filters):
    """A temperature that is off in its last bit makes every weight so, the smallest most."""
    logits, uniforms = random_logits(90), np.random.default_rng(2).random(90)
    one = np.float32(0.9)
    found = [
        draw_there(logits, [Draw(float(each), uniform=float(uniform), **filters) for uniform in uniforms])
        for each in (one, np.nextafter(one, np.float32(1)))
    ]
    (here, sure), (there, _) = found
    np.testing.assert_array_equal(here[sure], there[sure])
    assert sure.mean() > 0.6


@pytest.mark.parametrize("vocab", [1, 15, 500, 512, 513, 8193])
def test_vocabularies_of_any_size_are_drawn_from(tmp_path, vocab):
    session = quiet_session(write_sampler(tmp_path, vocab=vocab))
    logits = np.random.default_rng(0).exponential(3, (20, vocab)).astype(np.float32)
    draws = [Draw(0.7, top_k=i % 3 * 5, top_p=0.8, uniform=i / 20) for i in range(20)]
    token_ids, exact = session.run(list(RESULTS), {"logits": logits, **options_of(draws, vocab)})
    expected = np.array([draw(row, each, each.uniform) for row, each in zip(logits, draws, strict=True)])
    np.testing.assert_array_equal(token_ids[exact], expected[exact])
    assert exact.mean() > 0.9


def test_a_draw_at_a_boundary_is_left_to_the_host(draw_there):
    """Two tokens of half the mass each: float32 cannot tell on which side of their border 0.5 lies, and can for 0.4999."""
    logits = np.full((3, VOCAB), -1e4, np.float32)
    logits[:, [7, 2000]] = 0
    for filters in ({}, {"top_k": 5}, {"top_p": 0.9}):
        draws = [Draw(1.0, uniform=uniform, **filters) for uniform in (0.4999, 0.5, 0.5001)]
        token_ids, exact = draw_there(logits, draws)
        assert exact.tolist() == [True, False, True]
        assert token_ids[exact].tolist() == [7, 2000]


def test_filters_at_a_boundary_are_left_to_the_host(draw_there):
    """A quarter of the mass each: whether the third one is in the nucleus of a half, or above a min_p of its own weight."""
    logits = np.full((1, VOCAB), -1e4, np.float32)
    logits[0, [1, 2, 3, 4]] = 0
    assert not draw_there(logits, [Draw(1.0, top_p=0.5, uniform=0.1)])[1].any()
    assert draw_there(logits, [Draw(1.0, top_p=0.51, uniform=0.1)])[1].all()
    weights = np.array([1.0, 0.5, 0.25, 0.125], np.float32)
    logits[0, [1, 2, 3, 4]] = np.log(weights)
    assert not draw_there(logits, [Draw(1.0, min_p=0.25, uniform=0.1)])[1].any()
    assert draw_there(logits, [Draw(1.0, min_p=0.2, uniform=0.1)])[1].all()


def test_equals_of_the_last_token_that_is_ranked_are_left_to_the_host(draw_there):
    logits = np.zeros((1, VOCAB), np.float32)
    logits[0, :100] = 5
    token_ids, exact = draw_there(logits, [Draw(1.0, top_k=CANDIDATES, uniform=0.99)])
    assert not exact.any()
    token_ids, exact = draw_there(logits, [Draw(1.0, top_k=100, uniform=0.985)])
    assert (token_ids.tolist(), exact.tolist()) == ([98], [True])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_drawn_by_nobody(draw_there, value):
    logits = random_logits(2)
    logits[0, 9] = value
    _, exact = draw_there(logits, [Draw(1.0, top_k=5, uniform=0.5), IDLE])
    assert exact.tolist() == [False, True]


def test_a_graph_that_draws_other_tokens_is_refused(folder, monkeypatch):
    monkeypatch.setattr(sampler, "draw_on_host", lambda _row, _draw, _uniform: -1)
    with pytest.raises(
        ExportError, match=r"draws token \d+ by Draw\(temperature=0\.3, .*the host -1; install"
    ):
        check_sampler(folder / "sampler.onnx", VOCAB)


def test_a_graph_that_is_never_sure_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sampler, "ROUNDED", sampler.Sums(ir.DataType.FLOAT, error=1.0))
    with pytest.raises(ExportError, match="is sure of 0 draws of 40, of less than 80%"):
        write_sampler(tmp_path, vocab=100)


@pytest.fixture
def builder():
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    return open_builder("tensorrt-rtx")


def test_tensorrt_for_rtx_builds_an_engine_of_it(builder, folder):
    rows = {"logits": (VOCAB,), **dict.fromkeys(OPTIONS, ())}
    inputs = {name: Shapes(min=(1, *of), opt=(4, *of), max=(4, *of)) for name, of in rows.items()}
    compile_graph(
        builder,
        write_sampler(folder, vocab=VOCAB),
        folder / "sampler.engine",
        targets=("sm_89", "sm_120"),
        profiles=(EngineProfile(name="rows", inputs=inputs),),
        timing=folder / "timing.cache",
    )
    assert (folder / "sampler.engine").stat().st_size > 1e5


def test_the_parser_makes_float32_of_float64_without_a_word(builder, tmp_path):
    """So the graph for ONNX Runtime, which orders and sums in float64, is none for TensorRT, though it would be taken."""
    assert EXACT.dtype == ir.DataType.DOUBLE
    ir.save(sampler_graph(), tmp_path / "sampler.onnx")
    journal = Journal(builder.trt)
    logger = journal.logger()
    maker = builder.trt.Builder(logger)
    network = maker.create_network(1 << int(builder.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parse(builder.trt, network, tmp_path / "sampler.onnx", logger, journal)
    types = {network.get_input(i).name: network.get_input(i).dtype.name for i in range(network.num_inputs)}
    assert (types["uniform"], types["top_p"]) == ("FLOAT", "FLOAT")
    assert not journal.lines
