"""What an export writes, and what it refuses to write over."""

import json
from pathlib import Path

import pytest
from tests.conftest import REFERENCE

from vitrail.artifact_files import check_hashes, sha256
from vitrail.errors import CheckpointError, ExportError, OptionError
from vitrail.manifest import FILENAME, load_manifest
from vitrail_export import exporter
from vitrail_export.exporter import export_checkpoint
from vitrail_export.options import ExportOptions

TINY = REFERENCE / "internvl2-tiny"


def test_the_manifest_describes_what_was_written(tmp_path):
    manifest = export_checkpoint(TINY, tmp_path, options=ExportOptions(precision="int8"))
    assert manifest == load_manifest(tmp_path, contents=True)
    assert manifest.name == "internvl2-tiny"
    assert {artifact.path for artifact in manifest.artifacts.values()} | {FILENAME} == {
        file.name for file in tmp_path.iterdir()
    }
    assert (manifest.decoder.precision, manifest.decoder.dtype, manifest.vision.tokens_per_tile) == (
        "int8",
        "float32",
        256,
    )
    assert manifest.tokenizer.image_context_id == 1604
    assert manifest.decoder.kv_bytes_per_token == 2 * 3 * 2 * 16 * 4


def test_progress_ends_at_the_whole(tmp_path):
    seen = []
    export_checkpoint(
        TINY, tmp_path, options=ExportOptions(precision="int4"), progress=lambda *now: seen.append(now)
    )
    stages, done, totals = zip(*seen, strict=True)
    assert list(dict.fromkeys(stages)) == ["vision_encoder", "projector", "decoder", "token_embeddings"]
    assert len(set(totals)) == 1
    assert list(done) == sorted(done)
    assert done[-1] == totals[0]


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path):
    first, second = (export_checkpoint(TINY, tmp_path / name) for name in "ab")
    assert first.artifacts == second.artifacts


def test_exporting_again_replaces_the_earlier_export_and_leaves_other_files_alone_and_unlisted(tmp_path):
    export_checkpoint(TINY, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "folder").mkdir()
    held = (tmp_path / "decoder.onnx.data").open("rb")
    manifest = export_checkpoint(REFERENCE / "internvl3-tiny", tmp_path)
    assert not (tmp_path / "tokenizer.model").exists()
    assert not {"notes.txt", "folder", "tokenizer.model"} & set(manifest.artifacts)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with held:  # who still has the old files open, a server say, keeps them whole
        assert len(held.read()) > 0


def test_a_directory_of_other_things_is_not_written_into(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(OptionError, match="holds files that are no vitrail export"):
        export_checkpoint(TINY, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cache": "int8", "calibration": Path("nowhere")}, "'nowhere' is no directory"),
        ({"vision_precision": "int8", "dialect": "standard"}, "vision precision int8 is for dialect ort"),
    ],
)
def test_options_that_cannot_be_met_leave_an_earlier_export_alone(tmp_path, options, words):
    before = export_checkpoint(TINY, tmp_path)
    with pytest.raises(OptionError, match=words):
        export_checkpoint(TINY, tmp_path, options=ExportOptions(**options))
    check_hashes(before, tmp_path)
    assert load_manifest(tmp_path) == before


def test_a_calibration_picture_that_cannot_be_read_leaves_no_directory(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"no picture")
    options = ExportOptions(cache="int8", calibration=tmp_path / "pictures")
    with pytest.raises(OptionError, match=r"a calibration picture cannot be read: .*a\.png"):
        export_checkpoint(TINY, tmp_path / "out", options=options)
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_place_for_artifacts(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(OptionError, match="is a file; name a directory"):
        export_checkpoint(TINY, tmp_path / "out")


def test_an_export_that_is_cut_off_leaves_no_manifest(tmp_path, monkeypatch):
    export_checkpoint(TINY, tmp_path)
    monkeypatch.setattr(
        exporter, "save_quantized_embeddings", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(TINY, tmp_path)
    assert not (tmp_path / FILENAME).exists()


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(exporter.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(ExportError, match=r"need \d MB, .* has 0 MB free; free some space"):
        export_checkpoint(TINY, tmp_path)
    assert not any(tmp_path.iterdir())


def test_an_unknown_checkpoint_leaves_no_directory(tmp_path):
    with pytest.raises(CheckpointError):
        export_checkpoint(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_int8_vision_is_refused_for_engines_that_choose_their_own_precision(tmp_path):
    with pytest.raises(OptionError, match="vision precision int8 is for dialect ort"):
        export_checkpoint(TINY, tmp_path, options=ExportOptions(vision_precision="int8", dialect="standard"))


def test_hashes_are_those_of_the_files(tmp_path):
    manifest = export_checkpoint(TINY, tmp_path)
    check_hashes(manifest, tmp_path)
    artifact = manifest.artifacts["decoder.onnx.data"]
    assert artifact.sha256 == sha256(tmp_path / artifact.path)
    assert json.loads((tmp_path / FILENAME).read_text())["version"] == 1
