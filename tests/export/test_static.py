"""Vision in static int8: what is rewritten, what returns to float, and what is refused."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from tests.conftest import REFERENCE
from tests.export.layouts import copy_checkpoint, edit_tensors

from vitrail.errors import ArtifactError, OptionError
from vitrail.images import open_image
from vitrail.manifest import load_manifest
from vitrail.providers import Cpu
from vitrail.session.open import open_vision
from vitrail.tiling import split
from vitrail_export.checkpoint import Checkpoint
from vitrail_export.engine.options import EngineOptions
from vitrail_export.engine.sources import Sources
from vitrail_export.equalize import equalize
from vitrail_export.exporter import SCRATCH, export_checkpoint
from vitrail_export.graph import Form, save_graph
from vitrail_export.options import ExportOptions
from vitrail_export.pairs import CPU_CODES, ENGINE_CODES, Range, spots, step
from vitrail_export.pictures import MOST_TILES, calibration_tiles, spread
from vitrail_export.static import TARGET, Fitting, run
from vitrail_export.verify import verify
from vitrail_export.vision import build_vision_encoder

TINY, PICTURES = REFERENCE / "internvl2-tiny", REFERENCE / "images"
STATIC = {"precision": "float32", "vision_precision": "int8-static", "calibration": PICTURES}


def cosine(a, b):
    a, b = np.ravel(a).astype(np.float64), np.ravel(b).astype(np.float64)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def picture(name="coffee.png", size=448):
    return split(open_image(PICTURES / name), max_tiles=1, tile_size=size, thumbnail=False)


def vision(directory):
    return open_vision(directory, load_manifest(directory), Cpu())


def inputs(node):
    return {value.producer().op_type for value in node.inputs[:2] if value.producer() is not None}


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    """The encoder's float32 graph, what its spots reach on a picture, and its features."""
    path = tmp_path_factory.mktemp("floats") / "vision_encoder.onnx"
    checkpoint = Checkpoint.open(TINY)
    builder = build_vision_encoder(checkpoint.config, Form("ort", ir.DataType.FLOAT))
    save_graph(builder, checkpoint, path, lambda *_: None)
    return Fitting.begin(path, path.with_name("vision_encoder.onnx"), [picture()])


@pytest.fixture(scope="module")
def fragile(tmp_path_factory):
    """A checkpoint whose last MLP has one weight in each row far above the others, at an input that is almost nothing."""

    def widen(tensors):
        name = "vision_model.encoder.layers.2.mlp."
        tensors[f"{name}fc1.weight"][0], tensors[f"{name}fc1.bias"][0] = 0, 1e-3
        tensors[f"{name}fc2.weight"][:, 0] = 40
        return tensors

    return edit_tensors(copy_checkpoint("internvl2-tiny", tmp_path_factory.mktemp("fragile") / "tiny"), widen)


def test_every_product_and_the_scores_of_attention_take_int8_on_both_sides(exported):
    directory = exported("internvl2-tiny", **STATIC)
    for stage in ("vision_encoder", "projector"):
        nodes = list(ir.load(directory / f"{stage}.onnx").graph)
        quantized = [node for node in nodes if node.op_type in ("MatMul", "MultiHeadAttention")]
        assert len(quantized) == (3 * (4 + 1) if stage == "vision_encoder" else 2)
        assert all(inputs(node) == {"DequantizeLinear"} for node in quantized)


@pytest.mark.parametrize("name", ["internvl2-tiny", "internvl3-tiny"])
def test_it_comes_close_to_float32_on_a_picture_that_it_was_not_fitted_to(exported, tmp_path, name):
    for file in ("astronaut.png", "chelsea.png", "rocket.jpg"):
        (tmp_path / file).write_bytes((PICTURES / file).read_bytes())
    found = vision(exported(name, **{**STATIC, "calibration": tmp_path}))
    exact = vision(exported(name, precision="float32"))
    assert 0.9993 < cosine(found.see(picture()), exact.see(picture())) < 0.999999


def test_a_tile_does_not_depend_on_its_neighbours(exported):
    runner, tile = vision(exported("internvl2-tiny", **STATIC)), picture()
    noise = np.random.default_rng(0).integers(0, 256, tile.shape, np.uint8)
    together = runner.encode(np.concatenate([noise, tile, noise]))
    np.testing.assert_allclose(together[1:2], runner.encode(tile), atol=1e-4)


def test_the_check_of_an_export_holds_it_to_its_floor(tmp_path):
    manifest = export_checkpoint(TINY, tmp_path, options=ExportOptions(**STATIC))
    assert (manifest.vision.precision, manifest.vision.dtype, manifest.vision.spared) == (
        "int8-static",
        "float32",
        (),
    )
    assert {each.name for each in tmp_path.iterdir()} >= {"vision_encoder.onnx.data", "projector.onnx.data"}
    assert not (tmp_path / SCRATCH).exists()
    assert all(each.cosine > 0.999 for each in verify(tmp_path, TINY))


def test_the_same_pictures_give_the_same_bytes(tmp_path):
    first, second = (
        export_checkpoint(TINY, tmp_path / name, options=ExportOptions(**STATIC)) for name in "ab"
    )
    assert first.artifacts == second.artifacts


def test_equalizing_computes_the_same_and_evens_activations_out(floats, tmp_path):
    model = ir.load(floats.source)
    ranges = equalize(model, floats.ranges)
    ir.save(model, tmp_path / "even.onnx", external_data="even.onnx.data")
    ((found,),) = run(tmp_path / "even.onnx", floats.inputs)
    np.testing.assert_allclose(found, floats.exact[0], atol=2e-3, rtol=1e-3)
    spread = {
        name: [
            each[name].magnitude.max() / np.median(each[name].magnitude) for each in (floats.ranges, ranges)
        ]
        for name in ranges
    }
    assert all(after < before for name, (before, after) in spread.items() if name.endswith(("qkv", "fc1")))
    assert all(after == before for name, (before, after) in spread.items() if name.endswith(("proj", "fc2")))


def test_what_loses_too_much_returns_to_float_and_the_manifest_names_it(fragile, tmp_path):
    manifest = export_checkpoint(fragile, tmp_path, options=ExportOptions(**STATIC))
    assert manifest.vision.spared == ("vision.layers.2.mlp",)
    model = ir.load(tmp_path / "vision_encoder.onnx")
    floating = {spot.name for spot in spots(model.graph) if spot.node.op_type == "MatMul"}
    assert floating == {"vision.layers.2.mlp.fc1", "vision.layers.2.mlp.fc2"}
    exact = export_checkpoint(fragile, tmp_path / "exact", options=ExportOptions(precision="float32"))
    expected = open_vision(tmp_path / "exact", exact, Cpu()).encode(picture())
    assert cosine(vision(tmp_path).encode(picture()), expected) > TARGET


def test_activations_of_one_sign_use_all_of_uint8_and_others_are_even_about_zero():
    gelu, even = (Range(np.float32([low]), np.float32([5.0])) for low in (-0.17, -4.9))
    assert step(gelu, CPU_CODES) == (np.float32(5.17 / 255), np.uint8(8))
    assert step(even, CPU_CODES) == (np.float32(5 / 127), np.int8(0))
    assert step(gelu, ENGINE_CODES["int8"]) == (np.float32(5 / 127), np.int8(0))


def test_pictures_are_cut_as_they_are_asked_about_and_spread_evenly():
    config = Checkpoint.open(TINY).config
    tiles = calibration_tiles(config, PICTURES)
    assert tiles.shape[1:] == (3, config.tile_size, config.tile_size)
    assert 4 < len(tiles) <= MOST_TILES
    assert spread(100, 4) == [0, 33, 66, 99]
    assert spread(2, 4) == [0, 1]
    assert len(calibration_tiles(replace(config, max_tiles=1), PICTURES)) == len(list(PICTURES.iterdir()))


def test_a_picture_that_cannot_be_read_is_named_and_an_earlier_export_stays(tmp_path):
    out, pictures = tmp_path / "out", tmp_path / "pictures"
    earlier = export_checkpoint(TINY, out)
    pictures.mkdir()
    with pytest.raises(OptionError, match="has no picture"):
        export_checkpoint(TINY, out, options=ExportOptions(**{**STATIC, "calibration": pictures}))
    (pictures / "broken.png").write_bytes(b"no picture")
    with pytest.raises(OptionError, match=r"calibration picture cannot be read: .*broken\.png.*remove it"):
        export_checkpoint(TINY, out, options=ExportOptions(**{**STATIC, "calibration": pictures}))
    assert load_manifest(out, contents=True) == earlier


def test_an_export_that_was_killed_while_it_fitted_is_written_over(tmp_path):
    (tmp_path / SCRATCH).mkdir()
    (tmp_path / SCRATCH / "vision_encoder.onnx").write_bytes(b"half")
    export_checkpoint(TINY, tmp_path, options=ExportOptions(**STATIC))
    assert not (tmp_path / SCRATCH).exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": None}, "vision precision int8-static is fitted to pictures; .*--calibration"),
        ({"dialect": "standard"}, "vision precision int8-static is for dialect ort"),
    ],
)
def test_what_does_not_go_with_it_is_refused(tmp_path, options, message):
    with pytest.raises(OptionError, match=message):
        export_checkpoint(TINY, tmp_path, options=ExportOptions(**{**STATIC, **options}))
    assert not list(tmp_path.iterdir())


def test_tensorrt_needs_a_float_graph(exported, tmp_path):
    directory = exported("internvl2-tiny", **STATIC)
    sources = Sources(directory, load_manifest(directory), EngineOptions(), tmp_path, None)
    with pytest.raises(ArtifactError, match="is in int8-static, TensorRT needs it in fp16 or fp32"):
        sources.find("vision_encoder")
