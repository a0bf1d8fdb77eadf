"""What the runtime makes of an artifact directory that is not whole."""

import json
import shutil

import pytest

from vitrail.engine import Engine
from vitrail.errors import ArtifactError
from vitrail.manifest import FILENAME, load_manifest


@pytest.fixture
def artifacts(exported, tmp_path):
    return shutil.copytree(exported("internvl2-tiny"), tmp_path / "artifacts")


def edit(directory, **fields):
    path = directory / FILENAME
    manifest = json.loads(path.read_text())
    for dotted, value in fields.items():
        *sections, last = dotted.split("__")
        target = manifest
        for section in sections:
            target = target[section]
        if value is ...:
            target.pop(last)
        else:
            target[last] = value
    path.write_text(json.dumps(manifest))


def refused(directory, message):
    with pytest.raises(ArtifactError, match=message):
        Engine.load(directory, slots=1, context_tokens=64)


def test_a_missing_directory_names_the_command_that_makes_one(tmp_path):
    refused(tmp_path / "nowhere", r"no artifact directory at '.*nowhere'; make one with: vitrail export")


def test_a_directory_without_a_manifest_is_foreign_or_half_written(artifacts):
    (artifacts / FILENAME).unlink()
    refused(artifacts, r"has no manifest\.json: it is no vitrail export, or one that was cut off")


def test_a_checkpoint_in_place_of_its_export_names_the_command_that_makes_one(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    refused(
        tmp_path, r"is a checkpoint and no export of one; make it with: vitrail export '.*' --out artifacts"
    )


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", "[" * 100_000])
def test_a_manifest_that_is_no_object_is_refused(artifacts, text):
    (artifacts / FILENAME).write_text(text)
    refused(artifacts, "is not JSON|manifest version None")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 2}, "has manifest version 2, this vitrail reads 1"),
        ({"decoder__layers": 0}, r"field 'decoder\.layers'"),
        ({"decoder__kv_heads": ...}, r"field 'decoder\.kv_heads': Field required"),
        ({"surprise": 1}, "field 'surprise': Extra inputs"),
        ({"prompt__template": "vicuna"}, r"field 'prompt\.template'"),
        ({"artifacts__decoder": ...}, "names no artifact 'decoder'"),
    ],
)
def test_a_field_that_is_wrong_is_named(artifacts, fields, message):
    edit(artifacts, **fields)
    refused(artifacts, message)


@pytest.mark.parametrize("field", ["artifacts__decoder__path", "tokenizer__file"])
@pytest.mark.parametrize("path", ["../decoder.onnx", "engines/../../decoder.onnx", "/decoder.onnx", ".", ""])
def test_a_path_that_leads_out_of_the_export_is_refused_whatever_lies_there(artifacts, field, path):
    shutil.copy(artifacts / "decoder.onnx", artifacts.parent)
    edit(artifacts, **{field: path})
    name = field.replace("__", r"\.")
    refused(
        artifacts,
        f"field '{name}': '{path}' is no path in the export; it must be relative, without '..'; export again",
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoder__kv_heads": 3}, r"does not describe decoder\.onnx: input 'past\.2\.value'"),
        ({"decoder__layers": 4}, r"input 'past\.3\.value' should be .* the graph has no such input"),
        ({"decoder__dtype": "float16"}, r"should be tensor\(float16\)"),
        (
            {"decoder__vocab_size": 1617},
            r"token_embeddings\.npy is \[1616, 96\], the manifest says \[1617, 96\]",
        ),
        ({"vision__tile_size": 224}, r"does not describe vision_encoder\.onnx: input 'tiles'"),
        ({"vision__feature_size": 128}, r"does not describe projector\.onnx"),
    ],
)
def test_a_manifest_that_contradicts_the_graphs_is_refused_at_load(artifacts, fields, message):
    edit(artifacts, **fields)
    refused(artifacts, message)


def test_a_missing_artifact_is_named(artifacts):
    (artifacts / "projector.onnx").unlink()
    refused(artifacts, r"lacks projector\.onnx, which its manifest names")


def test_a_truncated_artifact_is_named(artifacts):
    data = artifacts / "decoder.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    refused(artifacts, r"decoder\.onnx\.data' has \d+ bytes, its manifest says \d+: damaged")


@pytest.mark.parametrize(
    "name", ["decoder.onnx.data", "vision_encoder.onnx", "token_embeddings.npy", "tokenizer.model"]
)
def test_a_damaged_artifact_is_found_by_its_hash(artifacts, name):
    content = bytearray((artifacts / name).read_bytes())
    content[len(content) // 2] ^= 1
    (artifacts / name).write_bytes(content)
    refused(artifacts, f"{name}' does not match its hash in the manifest: damaged; export again")


def test_contents_are_compared_only_when_asked(artifacts):
    (artifacts / "decoder.onnx.data").write_bytes(bytes((artifacts / "decoder.onnx.data").stat().st_size))
    assert load_manifest(artifacts).name == "internvl2-tiny"
