"""What an engine's attention computes in half precision: TensorRT's parser beside ONNX Runtime's kernel, which tries it.

ONNX leaves the softmax in the type of its inputs unless `softmax_precision` says otherwise.
"""

import shutil

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from tests.export.layouts import copy_checkpoint, edit_tensors
from typer.testing import CliRunner

from vitrail.cli import app
from vitrail.errors import ExportError
from vitrail.manifest import load_manifest
from vitrail_export.engine.builders import open_builder
from vitrail_export.engine.cases import Case
from vitrail_export.engine.compile import Journal, parse
from vitrail_export.engine.gate import Gate, run
from vitrail_export.engine.graphs import Prepared
from vitrail_export.engine.sources import Source
from vitrail_export.exporter import ExportOptions, export_checkpoint
from vitrail_export.verify import sample_tiles

SIZE, KEYS = 64, 256
SCALE = SIZE**-0.5
HALF, WIDE = TensorProto.FLOAT16, TensorProto.FLOAT


def attention(dtype, **attributes):
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], name="attend", scale=SCALE, **attributes)
    given = [helper.make_tensor_value_info(name, dtype, [1, 1, None, SIZE]) for name in "qkv"]
    graph = helper.make_graph([node], "attention", given, [helper.make_tensor_value_info("y", dtype, None)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)


def attend(dtype, *qkv):
    options = ort.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = ort.GraphOptimizationLevel(0), 3
    model = attention(dtype).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    typed = np.float16 if dtype == HALF else np.float32
    feeds = {name: x.astype(np.float16).astype(typed) for name, x in zip("qkv", qkv, strict=True)}
    return session.run(None, feeds)[0].astype(np.float32)


def both(query, keys=KEYS, *, common):
    """In half precision and in float32: a query whose scores with all keys are `common`, and differ by 0.1 of each other."""
    rng = np.random.default_rng(0)
    q = np.full((1, 1, 2, SIZE), query, np.float32)
    k = rng.normal(common / (query * SIZE * SCALE), 0.1 / (query * SIZE**0.5 * SCALE), (1, 1, keys, SIZE))
    v = rng.normal(1, 1, (1, 1, keys, SIZE))
    return [attend(dtype, q, k, v) for dtype in (HALF, WIDE)]


def test_softmax_sums_in_float32_however_many_keys_there_are():
    """A float16 sum of ones ends at 2048."""
    half, wide = both(0.01, 8192, common=0)
    np.testing.assert_allclose(half, wide, atol=2e-3)


def test_scores_pass_through_float16_so_the_gate_is_as_strict_as_an_engine_without_a_fused_kernel():
    """Beyond 65504 there is none; below, they are as coarse as float16 is there. Queries and keys are far within it."""
    with np.errstate(all="ignore"):
        half, wide = both(100.0, common=80_000)
    assert np.isfinite(wide).all()
    assert not np.isfinite(half).any()
    coarse, exact = both(4.0, common=3200)
    fine, same = both(4.0, common=0)
    assert np.abs(fine - same).max() < 2e-3 < 0.01 < np.abs(coarse - exact).max()


@pytest.fixture
def parsed(tmp_path):
    """parsed(model) -> the network; everything that was made is kept, since TensorRT's objects do not keep each other."""
    builder, kept = open_builder("tensorrt-rtx"), []

    def parse_one(model):
        journal = Journal(builder.trt)
        logger = journal.logger()
        maker = builder.trt.Builder(logger)
        network = maker.create_network(1 << int(builder.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        kept.append((logger, maker, network))
        onnx.save(model, tmp_path / "attention.onnx")
        parse(builder.trt, network, tmp_path / "attention.onnx", logger, journal)
        return network

    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    yield parse_one
    kept.clear()


@pytest.mark.parametrize("dtype", [WIDE, HALF])
def test_the_parser_takes_no_precision_for_the_softmax(parsed, dtype):
    with pytest.raises(
        ExportError, match=r"refuses Attention \(attend\): .*softmax precision is not supported"
    ):
        parsed(attention(HALF, softmax_precision=dtype))


def test_the_parser_scales_queries_and_keys_before_their_product(parsed):
    """So what has to fit into float16 is the scaled score: an eighth of the product here."""
    import tensorrt_rtx as trt

    network = parsed(attention(HALF))
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    makers = {each.get_output(k).name: each for each in layers for k in range(each.num_outputs)}
    (attends,) = (each for each in layers if each.type.name == "ATTENTION_INPUT")
    for i, name in enumerate("qk"):
        scaling = makers[attends.get_input(i).name]
        assert (scaling.type.name, scaling.get_input(0).name) == ("ELEMENTWISE", name)
        held = makers[makers[scaling.get_input(1).name].get_input(0).name]
        held.__class__, scaling.__class__ = trt.IConstantLayer, trt.IElementWiseLayer
        assert scaling.op == trt.ElementWiseOperation.PROD
        np.testing.assert_allclose(np.array(held.weights).reshape(-1), [SCALE**0.5], rtol=1e-6)


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory):
    """An export whose queries and keys are 64 times the tiny checkpoint's, far within float16; their products are 4096
    times those.
    """

    def amplified(tensors):
        for leaf in ("weight", "bias"):
            stacked = tensors.get(f"vision_model.encoder.layers.0.attn.qkv.{leaf}")
            if stacked is not None:
                stacked[: len(stacked) // 3 * 2] *= 64
        return tensors

    path = tmp_path_factory.mktemp("overflowing")
    checkpoint = edit_tensors(copy_checkpoint("internvl2-tiny", path / "checkpoint"), amplified)
    export_checkpoint(checkpoint, path / "out", options=ExportOptions(precision="float32"))
    return path / "out"


def test_scores_that_leave_float16_are_kept_in_float32_or_bfloat16(overflowing, tmp_path):
    directory, manifest = overflowing, load_manifest(overflowing)
    source = Source("vision_encoder", directory / manifest.artifacts["vision_encoder"].path)
    cases = [Case("a smooth picture", {"tiles": sample_tiles(manifest)})]

    def lowered(precision, **how):
        scratch = tmp_path / f"{precision}{len(how)}"
        scratch.mkdir()
        prepared = Prepared.of(source, scratch, precision, cases)
        return prepared.lower("vision_encoder", precision, capacity=64, **how)

    half, wide, bf16 = lowered("fp16"), lowered("fp16", wide_attention=True), lowered("bf16")
    gate = Gate(directory, manifest)
    with pytest.raises(
        ExportError, match=r"vision_encoder in fp16, .*not finite; build with --precision bf16"
    ):
        gate.check("vision_encoder", cases, exact=half.exact, lowered=half.tried, precision="fp16")
    found = gate.check("vision_encoder", cases, exact=wide.exact, lowered=wide.tried, precision="fp16")
    assert found.cosine > 0.999
    assert np.isfinite(run("vision_encoder", bf16.tried, cases)[0]).all()


def test_an_engine_is_built_with_its_attention_in_float32_and_the_command_says_so(overflowing, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    directory = shutil.copytree(overflowing, tmp_path / "artifacts")
    result = CliRunner().invoke(app, ["engine", str(directory), "--targets", "sm_89", "--max-tiles", "2"])
    assert result.exit_code == 0, result.stderr
    said = " ".join(result.stderr.split())
    assert "no --pictures were given" in said
    assert said.count("attention in float32: fp16 does not hold its scores") == 1
    vision, projector = load_manifest(directory).engines
    assert (vision.float32_attention, projector.float32_attention) == (True, False)
    assert (vision.precision, vision.dtype) == ("fp16", "float16")
    assert vision.parity.cosine > 0.999
