"""Weights made straight into artifacts: the same numbers wherever they are asked for, every byte in its place."""

import math

import numpy as np
import onnx
import pytest
from bench.gpu.models import Sizes, Subject
from bench.gpu.roofline import Roofline, Work
from bench.gpu.weights import RandomWeights, write_graph

from vitrail_export.decoder import build_decoder
from vitrail_export.graph import save_graph
from vitrail_export.names import weight_shapes
from vitrail_export.projector import build_projector

TINY = Subject("tiny", "fp16")


@pytest.fixture(scope="module")
def source():
    return RandomWeights(TINY.config)


def test_rows_are_those_of_the_whole_and_names_differ(source):
    name = "text.layers.0.mlp.gate.weight"
    whole = source.load(name)
    assert whole.shape == source.shape(name)
    np.testing.assert_array_equal(source.load_rows(name, 5, 9), whole[5:9])
    assert not np.array_equal(whole, source.load(name.replace("gate", "up")))
    assert whole.std() == pytest.approx(1 / math.sqrt(whole.shape[1]), rel=0.05)


def test_every_layer_has_the_numbers_of_the_first(source):
    first, other = (source.load(f"text.layers.{layer}.mlp.gate.weight") for layer in (0, 1))
    np.testing.assert_array_equal(first, other)
    assert not np.array_equal(first, source.load("text.layers.0.mlp.up.weight"))


def test_numbers_are_exact_in_bfloat16_as_a_checkpoints_are(source):
    bits = source.load("text.norm.weight").view(np.uint32)
    assert not (bits & 0xFFFF).any()


@pytest.mark.parametrize("part", ["projector", "decoder"])
def test_a_graph_is_written_by_several_threads_as_by_one(part, source, tmp_path):
    for name, write in (("one", save_graph), ("many", write_graph)):
        (tmp_path / name).mkdir()
        extra = (lambda *_: None,) if name == "one" else ()
        options = {"threads": 3} if name == "many" else {}
        write(graph(part), source, tmp_path / name / "graph.onnx", *extra, **options)
    one, many = (onnx.load(tmp_path / name / "graph.onnx") for name in ("one", "many"))
    assert len(one.graph.initializer) > 3
    for ours, theirs in zip(many.graph.initializer, one.graph.initializer, strict=True):
        assert (ours.name, ours.raw_data) == (theirs.name, theirs.raw_data)


def graph(part):
    int4 = Subject("tiny", "int4")
    if part == "decoder":
        return build_decoder(int4.config.text, int4.options.decoder_form)
    return build_projector(int4.config, int4.options.vision_form)


def test_a_decode_step_reads_every_matrix_and_every_cached_token_once():
    roof = Roofline(copy_gb_s=1.0, matrix_tflop_s=1e9)
    text = TINY.config.text
    work = Work(TINY.config, weight_bytes=3_000_000)
    empty = work.decode_floor_ms(roof, rows=1, cached_tokens=0)
    cached = work.decode_floor_ms(roof, rows=4, cached_tokens=100)
    assert empty == pytest.approx(3.0)
    per_token = 2 * 2 * text.layers * text.kv_heads * text.head_dim
    assert cached - empty == pytest.approx(4 * 100 * per_token / 1e6)


def test_prefill_and_vision_count_two_operations_for_each_weight_and_token():
    roof = Roofline(copy_gb_s=1e9, matrix_tflop_s=1e-6)  # a million operations a second
    config = TINY.config
    text = [
        math.prod(shape) for name, shape in weight_shapes(config).items() if name.startswith("text.layers.")
    ]
    work = Work(config, weight_bytes=1)
    one, two = (work.prefill_floor_ms(roof, tokens) for tokens in (1, 2))
    quadratic = 2 * config.text.layers * config.text.heads * config.text.head_dim / 1e3
    assert one == pytest.approx(2 * sum(text) / 1e3 + quadratic)
    assert two - 2 * one == pytest.approx(2 * quadratic)
    assert work.vision_floor_ms(roof, 6) == pytest.approx(6 * work.vision_floor_ms(roof, 1))


def test_a_small_card_is_asked_for_no_more_at_once_than_it_has_slots():
    sizes = Sizes().within(8)
    assert (sizes.slots, sizes.batches, sizes.concurrency) == (8, (1, 8), (8, 1))
    assert sizes.peer_batches == (8, 8)
    assert sizes.tiles == Sizes().tiles
