"""The graphs that engines are built from, run by ONNX Runtime: other arithmetic, the same picture."""

import shutil

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.conftest import REFERENCE
from tests.export.layouts import copy_checkpoint, edit_tensors

from vitrail.errors import ArtifactError, ExportError, OptionError
from vitrail.manifest import load_manifest
from vitrail_export.checkpoint import Checkpoint
from vitrail_export.engine.cases import Case, outliers, picture_files, vision_cases
from vitrail_export.engine.gate import Gate, run
from vitrail_export.engine.graphs import Prepared, position_embedding
from vitrail_export.engine.lowering import BFLOAT16, FLOAT, FLOAT16, WIDE, lower
from vitrail_export.engine.options import EngineOptions
from vitrail_export.engine.sources import Source, Sources
from vitrail_export.exporter import ExportOptions, export_checkpoint
from vitrail_export.reference import Bfloat16, Reference
from vitrail_export.verify import parity, sample_tiles

TINY = REFERENCE / "internvl2-tiny"
IMAGES = REFERENCE / "images"
EXPORTS = [
    {},
    {"dialect": "standard"},
    {"dialect": "standard", "precision": "float16", "vision_precision": "float16"},
]


def source(directory, stage):
    return Source(stage, directory / load_manifest(directory).artifacts[stage].path)


def vision_graphs(directory, scratch, precision, pictures=()):
    found, manifest = source(directory, "vision_encoder"), load_manifest(directory)
    cases = vision_cases(manifest, pictures, position_embedding(found).numpy())
    prepared = Prepared.of(found, scratch, precision, cases)
    return cases, prepared.lower("vision_encoder", precision, capacity=64)


def cosine(a, b):
    return parity("", np.asarray(a), np.asarray(b)).cosine


@pytest.mark.parametrize("options", EXPORTS, ids=str)
def test_whatever_an_export_s_form_its_float32_graph_computes_the_reference(exported, tmp_path, options):
    directory = exported("internvl2-tiny", **options)
    tiles = sample_tiles(load_manifest(directory))
    _, graphs = vision_graphs(directory, tmp_path, "fp16")
    (features,) = run("vision_encoder", graphs.exact, [Case("", {"tiles": tiles})])
    assert cosine(features, Reference(Checkpoint.open(TINY)).features(tiles)) > 0.999999
    assert all(node.domain == "" for node in ir.load(graphs.exact).graph)


@pytest.mark.parametrize("options", EXPORTS, ids=str)
@pytest.mark.parametrize("stage", ["vision_encoder", "projector"])
def test_norms_stay_in_float32_and_all_else_is_in_half_precision(exported, options, stage):
    model = source(exported("internvl2-tiny", **options), stage).load()
    lower(model, FLOAT16, boundary=FLOAT16)
    norms = [node for node in model.graph if node.op_type in WIDE]
    others = [node for node in model.graph if node.op_type not in {*WIDE, "Cast"}]
    assert {value.dtype for node in norms for value in (*node.inputs, *node.outputs)} == {FLOAT}
    assert FLOAT not in {
        value.dtype for node in others for value in (*node.inputs, *node.outputs) if value is not None
    }
    assert model.graph.outputs[0].dtype == FLOAT16


def test_a_graph_whose_files_a_repository_also_names_is_read(exported, tmp_path):
    directory = exported("internvl2-tiny", dialect="standard")
    for name in ("projector.onnx", "projector.onnx.data"):
        (tmp_path / name).hardlink_to(directory / name)
    linked, copied = tmp_path / "projector.onnx", tmp_path / "copy" / "projector.onnx"
    shutil.copytree(tmp_path, copied.parent)
    one, other = (Source("projector", path).load().graph.initializers for path in (linked, copied))
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert np.array_equal(value.const_value.numpy(), other[name].const_value.numpy())


def test_weights_outside_of_a_graph_s_folder_are_not_read(exported, tmp_path):
    directory = exported("internvl2-tiny", dialect="standard")
    model = onnx.load(directory / "projector.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = f"../{entry.value}" if entry.key == "location" else entry.value
    (tmp_path / "inner").mkdir()
    onnx.save(model, tmp_path / "inner" / "projector.onnx")
    with pytest.raises(ArtifactError, match="outside of its folder"):
        Source("projector", tmp_path / "inner" / "projector.onnx").load()


def test_a_decoder_keeps_its_integer_weights_and_its_logits_in_float32(exported):
    directory = exported("internvl2-tiny", precision="int4", activations="float16", dialect="standard")
    before = ir.load(source(directory, "decoder").path).graph
    model = source(directory, "decoder").load()
    lower(model, BFLOAT16, boundary=FLOAT)
    weights = {name: value.dtype for name, value in model.graph.initializers.items()}
    assert {name for name, dtype in weights.items() if dtype == ir.DataType.INT4} == {
        name for name, value in before.initializers.items() if value.dtype == ir.DataType.INT4
    }
    boundary = {value.name: value.dtype for value in (*model.graph.inputs, *model.graph.outputs)}
    assert boundary["inputs_embeds"] == boundary["logits"] == FLOAT
    assert boundary["past.0.key"] == boundary["present.0.key"] == BFLOAT16


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_close_to_float32_on_pictures_and_on_extreme_activations(
    exported, tmp_path, precision
):
    directory = exported("internvl2-tiny")
    cases, graphs = vision_graphs(directory, tmp_path, precision, (IMAGES,))
    assert {"astronaut.png", "black", "extreme activations"} <= {case.name for case in cases}
    gate = Gate(directory, load_manifest(directory))
    options = {"exact": graphs.exact, "lowered": graphs.tried, "precision": precision}
    assert 0.999 < gate.check("vision_encoder", cases, **options).cosine < 1


def test_emulated_bfloat16_is_as_far_from_float32_as_pytorch_s_bfloat16(exported, tmp_path):
    """Not equal, since they sum in other orders, but much closer to each other than a wrong emulation would be."""
    directory = exported("internvl2-tiny")
    tiles = sample_tiles(load_manifest(directory))
    _, graphs = vision_graphs(directory, tmp_path, "bf16")
    (emulated,) = run("vision_encoder", graphs.tried, [Case("", {"tiles": tiles})])
    exact, half = (kind(Checkpoint.open(TINY)).features(tiles) for kind in (Reference, Bfloat16))
    errors = [1 - cosine(each, exact) for each in (emulated, half)]
    assert 0.3 < errors[0] / errors[1] < 3
    assert errors[1] > 1e-6
    assert cosine(emulated, half) > 0.999


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_calibrated_graph_quantizes_both_sides_of_every_product(exported, tmp_path, precision):
    directory = exported("internvl2-tiny")
    cases, graphs = vision_graphs(directory, tmp_path, precision, (IMAGES / "coffee.png",))
    products = [node for node in ir.load(graphs.engine).graph if node.op_type == "MatMul"]
    assert len(products) == 4 * 3
    makers = [value.producer().op_type for node in products for value in node.inputs]
    assert set(makers) == {"DequantizeLinear"}
    found, exact = (run("vision_encoder", path, cases) for path in (graphs.tried, graphs.exact))
    real = [case.real for case in cases].index(True)
    assert 0.99 < cosine(found[real], exact[real]) < 0.99999


def test_what_a_few_channels_make_coarse_is_evened_out_and_what_stays_too_coarse_is_spared(tmp_path):
    """The first layer's MLP gets one input channel far above the others; the last one's matrices, one such weight each."""

    def widen(tensors):
        first, last = (f"vision_model.encoder.layers.{i}." for i in (0, 2))
        tensors[f"{first}norm2.weight"][5] *= 300
        tensors[f"{first}mlp.fc1.weight"][:, 5] /= 300
        tensors[f"{last}mlp.fc1.weight"][0], tensors[f"{last}mlp.fc1.bias"][0] = 0, 1e-3
        tensors[f"{last}mlp.fc2.weight"][:, 0] = 3000
        return tensors

    checkpoint = edit_tensors(copy_checkpoint("internvl2-tiny", tmp_path / "checkpoint"), widen)
    export_checkpoint(checkpoint, tmp_path / "out", options=ExportOptions(precision="float32"))
    found, manifest = source(tmp_path / "out", "vision_encoder"), load_manifest(tmp_path / "out")
    cases = vision_cases(manifest, (IMAGES / "coffee.png",), position_embedding(found).numpy())
    prepared = Prepared.of(found, tmp_path, "int8", cases)
    assert prepared.spared == ("vision.layers.2.mlp",)
    graphs = prepared.lower("vision_encoder", "int8", capacity=64)
    floating = {
        node.inputs[1].name
        for node in ir.load(graphs.engine).graph
        if node.op_type == "MatMul" and node.inputs[1].is_initializer()
    }
    assert floating == {f"vision.layers.2.mlp.{name}.weight" for name in ("fc1", "fc2")}
    check = {"exact": graphs.exact, "lowered": graphs.tried, "precision": "int8"}
    assert Gate(tmp_path / "out", manifest).check("vision_encoder", cases, **check).cosine > 0.99


def overflowing(directory):
    """Activations of the first layer's MLP beyond the range of float16, brought back by the matrix after it."""

    def amplify(tensors):
        for name, factor in (("fc1.weight", 2.0**17), ("fc1.bias", 2.0**17), ("fc2.weight", 2.0**-17)):
            tensors[f"vision_model.encoder.layers.0.mlp.{name}"] *= factor
        return tensors

    return edit_tensors(directory, amplify)


def test_a_model_that_overflows_in_float16_is_refused_and_passes_in_bfloat16(tmp_path):
    checkpoint = overflowing(copy_checkpoint("internvl2-tiny", tmp_path / "checkpoint"))
    directory = tmp_path / "out"
    export_checkpoint(checkpoint, directory, options=ExportOptions(precision="float32"))
    gate = Gate(directory, load_manifest(directory))
    for precision in ("bf16", "fp16"):
        scratch = tmp_path / precision
        scratch.mkdir()
        cases, graphs = vision_graphs(directory, scratch, precision)
        check = {"exact": graphs.exact, "lowered": graphs.tried, "precision": precision}
        if precision == "bf16":
            assert gate.check("vision_encoder", cases, **check).cosine > 0.999
            continue
        with pytest.raises(
            ExportError, match=r"vision_encoder in fp16, given .*not finite; build with --precision bf16"
        ):
            gate.check("vision_encoder", cases, **check)


def test_extreme_activations_are_two_channels_far_from_the_others():
    x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
    extreme, channels = outliers(x)
    assert np.abs(extreme[..., list(channels)]).min() > 2000
    rest = [channel for channel in range(8) if channel not in channels]
    np.testing.assert_array_equal(extreme[..., rest], x[..., rest])


@pytest.mark.parametrize(
    ("options", "stage", "message"),
    [
        ({"vision_precision": "int8"}, "vision_encoder", "is in int8, TensorRT needs it in fp16 or fp32"),
        ({}, "decoder", "is in dialect ort, TensorRT needs standard"),
    ],
)
def test_an_export_that_tensorrt_cannot_take_needs_its_checkpoint(
    exported, tmp_path, options, stage, message
):
    directory = exported("internvl2-tiny", **options)
    manifest = load_manifest(directory)
    with pytest.raises(
        ArtifactError, match=rf"{message}; .*--checkpoint CHECKPOINT .*vitrail export .*--dialect standard"
    ):
        Sources(directory, manifest, EngineOptions(), tmp_path, None).find(stage)
    found = Sources(directory, manifest, EngineOptions(), tmp_path, Checkpoint.open(TINY)).find(stage)
    assert all(node.domain == "" for node in found.load().graph)


def test_a_decoder_that_was_fitted_to_pictures_is_not_silently_rounded_anew(exported, tmp_path):
    directory = exported("internvl2-tiny", precision="int4")
    manifest = load_manifest(directory)
    fitted = manifest.model_copy(
        update={"decoder": manifest.decoder.model_copy(update={"quantizer": "gptq"})}
    )
    with pytest.raises(ArtifactError, match=r"fitted to pictures.*--dialect standard .*--quantizer gptq"):
        Sources(directory, fitted, EngineOptions(), tmp_path, Checkpoint.open(TINY)).find("decoder")


def test_pictures_are_files_or_folders_that_hold_some(tmp_path):
    assert [path.name for path in picture_files((IMAGES,))] == [
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "rocket.jpg",
    ]
    with pytest.raises(OptionError, match=r"holds no pictures \(\.bmp, \.jpeg"):
        picture_files((tmp_path,))


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_precisions_that_are_calibrated_ask_for_pictures(precision):
    with pytest.raises(OptionError, match=rf"{precision} is calibrated on pictures .*--pictures"):
        EngineOptions(precision=precision)
