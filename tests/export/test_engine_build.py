"""Engines that TensorRT-RTX really builds, without a GPU, of small checkpoints."""

import shutil

import onnx
import pytest
from onnx import TensorProto, helper
from tests.conftest import CHECKPOINTS, REFERENCE
from typer.testing import CliRunner

from vitrail.artifact_files import sha256
from vitrail.cli import app
from vitrail.engine_files import engine_file
from vitrail.errors import ArtifactError, ExportError
from vitrail.manifest import EngineProfile, Shapes, load_manifest
from vitrail_export.engine.build import build_engines
from vitrail_export.engine.builders import Builder, open_builder
from vitrail_export.engine.compile import compile_graph
from vitrail_export.engine.options import EngineOptions
from vitrail_export.engine.timing import read_cache
from vitrail_export.engine.workspace import scratch_folder
from vitrail_export.exporter import ExportOptions, export_checkpoint

pytest.importorskip("tensorrt_rtx", reason="engines are built by tensorrt_rtx, which this platform has not")
DEMO = REFERENCE.parents[2] / "demo" / "checkpoint"
SMALL = [*(REFERENCE / name for name in CHECKPOINTS), *([DEMO] if DEMO.is_dir() else [])]
TARGETS = ("sm_86", "sm_89")
STANDARD = {
    "precision": "int4",
    "activations": "float16",
    "dialect": "standard",
    "vision_precision": "float16",
}


PICTURES = REFERENCE / "images"
FORM = {
    "targets": TARGETS,
    "decoder": True,
    "slots": 2,
    "context_tokens": 512,
    "prefill_chunk": 128,
    "pictures": (PICTURES,),
}


def builder_and_version():
    return "tensorrt-rtx", open_builder("tensorrt-rtx").version


@pytest.fixture(scope="module", params=SMALL, ids=lambda path: path.name)
def built(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("engines") / "artifacts"
    export_checkpoint(request.param, directory, options=ExportOptions(**STANDARD))
    return directory, build_engines(directory, EngineOptions(**FORM))


def test_every_stage_gets_an_engine_that_the_manifest_describes(built):
    directory, records = built
    manifest, (builder, version) = load_manifest(directory), builder_and_version()
    assert manifest.engines == records
    assert [record.stage for record in records] == ["vision_encoder", "projector", "decoder", "sampler"]
    for record in records:
        assert manifest.engine(record.stage, builder, "sm_89", builder_version=version) == record
        assert record.stage == "sampler" or record.parity.cosine > 0.999
        file = engine_file(manifest, record, directory)
        assert sha256(file) == manifest.artifacts[record.artifact].sha256
        assert file.stat().st_size > 1e5
    assert not list((directory / "engines").glob(".build*"))


def test_a_build_that_is_repeated_keeps_what_is_whole_and_makes_the_rest_anew(built, tmp_path):
    directory = shutil.copytree(built[0], tmp_path / "artifacts")
    manifest = load_manifest(directory)
    whole = {record.stage: engine_file(manifest, record, directory) for record in manifest.engines}
    before = {stage: file.stat().st_mtime_ns for stage, file in whole.items()}
    whole["projector"].write_bytes(b"cut off")
    said = []
    kernels = whole["projector"].with_name(f"{whole['projector'].name}.kernels")
    kept = whole["decoder"].with_name(f"{whole['decoder'].name}.kernels")
    for file in (kernels, kept, directory / "engines" / "left.engine.kernels.partial"):
        file.write_bytes(b"compiled")
    built_again = build_engines(
        directory, EngineOptions(**FORM), report=lambda stage, what, _: said.append((stage, what))
    )
    assert [stage for stage, what in said if what == "up to date"] == ["vision_encoder", "decoder", "sampler"]
    assert [record.stage for record in built_again] == list(whole)
    changed = [stage for stage, file in whole.items() if file.stat().st_mtime_ns != before[stage]]
    assert changed == ["projector"]
    assert list((directory / "engines").glob("*.kernels*")) == [kept]
    assert engine_file(load_manifest(directory), built_again[1], directory).stat().st_size > 1e5


def test_profiles_are_those_that_were_asked_for(built):
    directory, (vision, projector, decoder, sampler) = built
    manifest = load_manifest(directory)
    contract, tile = manifest.decoder, (3, manifest.vision.tile_size, manifest.vision.tile_size)
    assert vision.profiles[0].inputs["tiles"] == Shapes(min=(1, *tile), opt=(13, *tile), max=(13, *tile))
    assert projector.max_tiles == 13
    assert (decoder.slots, decoder.capacity) == (2, 512)
    assert sampler.profile("rows").inputs["logits"].max == (2, contract.vocab_size)
    decode, prefill = decoder.profile("decode").inputs, decoder.profile("prefill").inputs
    assert decode["inputs_embeds"].max == (2, 1, contract.hidden_size)
    assert prefill["inputs_embeds"].max == (1, 128, contract.hidden_size)
    last = f"past.{contract.layers - 1}.value"
    assert decode[last].min == (1, contract.kv_heads, 512, contract.head_dim)


def test_an_engine_for_another_target_or_version_or_builder_is_refused_with_the_command(built):
    directory, _ = built
    manifest, (builder, version) = load_manifest(directory), builder_and_version()
    for arguments, message in (
        (
            ("decoder", builder, "sm_120"),
            (
                r"decoder has engines for tensorrt-rtx on sm_86/sm_89; tensorrt-rtx on sm_120 is needed; build one "
                r"with: vitrail engine .* --with tensorrt-rtx --targets sm_120 --decoder"
            ),
        ),
        (
            ("projector", "tensorrt", "sm_86"),
            r"tensorrt on sm_86 is needed; .*--with tensorrt --targets current$",
        ),
    ):
        with pytest.raises(ArtifactError, match=message):
            manifest.engine(*arguments, directory=directory)
    with pytest.raises(
        ArtifactError, match=rf"was built by tensorrt-rtx {version}, 9\.9 is installed; build one"
    ):
        manifest.engine("projector", builder, "sm_86", builder_version="9.9")


def test_a_damaged_engine_is_refused_by_name_and_keeps_nothing_else_from_loading(built, tmp_path):
    directory = shutil.copytree(built[0], tmp_path / "artifacts")
    manifest = load_manifest(directory)
    record = manifest.engine("projector", "tensorrt-rtx", "sm_86")
    file = engine_file(manifest, record, directory)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        ArtifactError,
        match=r"\.engine' does not match its hash .*build it again with: vitrail engine .*sm_86",
    ):
        engine_file(manifest, record, directory)
    file.write_bytes(content[:-1])
    with pytest.raises(ArtifactError, match=r"bytes, its manifest says .*: damaged; build it again"):
        engine_file(manifest, record, directory)
    file.unlink()
    with pytest.raises(ArtifactError, match=r"lacks the engine engines/projector\..*build it again"):
        engine_file(manifest, record, directory)
    assert load_manifest(directory, contents=True).engines


def test_the_command_makes_an_int8_engine_from_the_checkpoint_and_it_replaces_the_one_before(
    exported, tmp_path
):
    directory = shutil.copytree(exported("internvl2-tiny", vision_precision="int8"), tmp_path / "artifacts")
    command = ["engine", directory, "--checkpoint", REFERENCE / "internvl2-tiny", "--targets", "sm_89"]
    picture = REFERENCE / "images" / "coffee.png"
    (directory / "engines").mkdir()
    (directory / "engines" / "left.engine").write_bytes(b"of an earlier export")
    files = []
    for extra in ((), ("--precision", "int8", "--pictures", picture, "--max-tiles", "3")):
        result = CliRunner().invoke(app, [str(each) for each in (*command, *extra)])
        assert result.exit_code == 0, result.stderr
        files.append(sorted(path.name for path in (directory / "engines").glob("*.engine")))
    assert "vision_encoder  int8" in result.stderr
    assert files[0] == [
        "projector.tensorrt-rtx.sm_89.fp16.engine",
        "vision_encoder.tensorrt-rtx.sm_89.fp16.engine",
    ]
    assert files[1] == [
        "projector.tensorrt-rtx.sm_89.fp16.engine",
        "vision_encoder.tensorrt-rtx.sm_89.int8.engine",
    ]
    engines = load_manifest(directory, contents=True).engines
    assert [(each.stage, each.precision, each.max_tiles) for each in engines] == [
        ("vision_encoder", "int8", 3),
        ("projector", "fp16", 3),
    ]


@pytest.mark.skipif(not DEMO.is_dir(), reason="the demo checkpoint is not here")
@pytest.mark.parametrize(("precision", "most"), [("int8", 2), ("fp8", 4)])
def test_the_demo_checkpoint_s_vision_encoder_gets_an_engine_in_eight_bits(
    built, tmp_path, precision, most, request
):
    """Of its eight modules at most so many stay in half precision."""
    if DEMO.name not in request.node.callspec.id:
        pytest.skip("one checkpoint is enough")
    directory = shutil.copytree(built[0], tmp_path / "artifacts")
    vision, _ = build_engines(
        directory, EngineOptions(targets=("sm_89",), precision=precision, pictures=(PICTURES,))
    )
    assert load_manifest(directory).engines[-2] == vision
    assert vision.parity.cosine >= 0.99
    assert 1 <= len(vision.spared) <= most
    assert all(name.startswith("vision.layers.") for name in vision.spared)


def test_two_builds_in_one_export_do_not_meet(tmp_path):
    with (
        scratch_folder(tmp_path / "engines"),
        pytest.raises(ExportError, match="another process builds engines in"),
        scratch_folder(tmp_path / "engines"),
    ):
        pass


def test_what_a_killed_build_left_is_removed(tmp_path):
    with scratch_folder(tmp_path / "engines") as scratch:
        (scratch / "decoder.onnx.data").write_bytes(b"x")
        shutil.copytree(scratch, tmp_path / "left")
    shutil.copytree(tmp_path / "left", tmp_path / "engines" / ".build")
    with scratch_folder(tmp_path / "engines") as scratch:
        assert not list(scratch.iterdir())


def tensor(name, dtype, shape):
    return helper.make_tensor_value_info(name, dtype, shape)


def compile_node(tmp_path, node, inputs, *, dtype=TensorProto.FLOAT, profile=None, builder=None):
    graph = helper.make_graph([node], "g", inputs, [tensor("y", dtype, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    onnx.save(model, tmp_path / "odd.onnx")
    compile_graph(
        builder or open_builder("tensorrt-rtx"),
        tmp_path / "odd.onnx",
        tmp_path / "odd.engine",
        targets=("sm_86",),
        profiles=(profile,) if profile else (),
        timing=tmp_path / "timing.cache",
    )


def test_an_operator_that_the_builder_does_not_take_is_named(tmp_path):
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"], name="odd")
    with pytest.raises(ExportError, match=r"parser refuses DynamicQuantizeLinear \(odd\)"):
        compile_node(tmp_path, node, [tensor("x", TensorProto.FLOAT, [4, 4])], dtype=TensorProto.UINT8)
    assert not (tmp_path / "odd.engine").exists()


def test_an_input_that_the_builder_drops_is_an_error(tmp_path):
    """Its parser ignores nonpad_kv_seqlen, so that such an engine would attend to what lies behind the end."""
    shape, half = [1, 4, 8, 16], TensorProto.FLOAT16
    inputs = [tensor(name, half, shape) for name in "qkv"] + [tensor("lengths", TensorProto.INT64, [1])]
    node = helper.make_node("Attention", ["q", "k", "v", "", "", "", "lengths"], ["y"])
    with pytest.raises(ExportError, match=r"drops an input of odd, .*Unused Input: lengths"):
        compile_node(tmp_path, node, inputs, dtype=half)


def test_a_build_that_fails_tells_the_builder_s_own_words(tmp_path):
    profile = EngineProfile(name="bad", inputs={"x": Shapes(min=(5, 4), opt=(5, 4), max=(5, 4))})
    node = helper.make_node("Relu", ["x"], ["y"])
    with pytest.raises(ExportError, match=r"refuses the profile 'bad'|built no engine of odd: .*\w"):
        compile_node(tmp_path, node, [tensor("x", TensorProto.FLOAT, [4, 4])], profile=profile)


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX")
def test_full_tensorrt_s_path_keeps_a_timing_cache_and_refuses_a_damaged_one(tmp_path):
    """TensorRT-RTX has the same interface, and builds for any GPU where it is given no target."""
    arguments = (
        tmp_path,
        helper.make_node("Relu", ["x"], ["y"]),
        [tensor("x", TensorProto.FLOAT, [4, 4])],
    )
    full = Builder("tensorrt", open_builder("tensorrt-rtx").trt)
    for _ in range(2):
        compile_node(*arguments, builder=full)
    assert (tmp_path / "odd.engine").stat().st_size > 1000
    cache = tmp_path / "timing.cache"
    assert read_cache(cache)
    cache.write_bytes(cache.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"timing\.cache' is damaged; remove it"):
        compile_node(*arguments, builder=full)


@pytest.mark.parametrize("targets", [",", "", "sm_86,"])
def test_a_target_without_a_name_is_refused_not_left_out(exported, targets):
    directory = exported("internvl2-tiny")
    result = CliRunner().invoke(
        app, ["engine", str(directory), "--with", "tensorrt-rtx", "--targets", targets]
    )
    assert result.exit_code == 2
    assert "not for ''" in result.stderr
