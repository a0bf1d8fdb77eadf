"""Parity with the float32 reference, and the gate that every export passes."""

import numpy as np
import pytest
from tests.conftest import REFERENCE

from vitrail.errors import ArtifactError, ExportError
from vitrail.manifest import FILENAME, load_manifest
from vitrail_export import verify as module
from vitrail_export.exporter import ExportOptions, export_checkpoint
from vitrail_export.verify import check, verify

TINY = REFERENCE / "internvl2-tiny"


def export(out, **options):
    export_checkpoint(TINY, out, options=ExportOptions(**options))
    return out


@pytest.mark.parametrize(
    ("options", "floors"),
    [
        ({"precision": "float32"}, (0.999999, 0.999999, 0.999999)),
        ({"precision": "float16", "vision_precision": "float16"}, (0.9999, 0.9999, 0.9999)),
        ({"precision": "int8", "activations": "float16"}, (0.999999, 0.999999, 0.998)),
        ({"precision": "float32", "vision_precision": "int8"}, (0.999, 0.9999, 0.999999)),
        ({"precision": "float32", "dialect": "standard"}, (0.999999, 0.999999, 0.999999)),
    ],
)
def test_every_stage_is_measured_and_recorded(tmp_path, options, floors):
    found = verify(export(tmp_path / "out", **options), TINY)
    assert [parity.stage for parity in found] == ["vision_encoder", "projector", "decoder"]
    assert all(parity.cosine >= floor for parity, floor in zip(found, floors, strict=True))
    assert load_manifest(tmp_path / "out").parity == found


def test_an_export_that_computes_something_else_is_refused_and_loses_its_manifest(tmp_path, monkeypatch):
    out = export(tmp_path / "out", precision="float32")
    monkeypatch.setattr(module.Stages, "embeds", lambda self, features: np.zeros((1, 256, 96), np.float32))
    with pytest.raises(ExportError, match=r"projector in float32 has cosine 0\.000000.*below 0\.99999"):
        check(out, TINY)
    assert not (out / FILENAME).exists()


def test_an_int8_cache_has_a_floor_of_its_own_and_its_own_cure(tmp_path, monkeypatch):
    out = export(tmp_path / "out", precision="float32", cache="int8", calibration=REFERENCE / "images")
    assert 0.999 <= verify(out, TINY)[-1].cosine < 0.99999
    check(out, TINY)
    right = module.Stages.logits
    monkeypatch.setattr(module.Stages, "logits", lambda *given: -right(*given))
    cure = r"below 0\.999; manifest\.json records it; leave --kv-cache int8 out"
    with pytest.raises(ExportError, match=cure):
        check(out, TINY)


def test_an_export_whose_check_is_interrupted_has_no_manifest(tmp_path, monkeypatch):
    def interrupt(*_):
        assert not (out / FILENAME).exists()
        raise KeyboardInterrupt

    out = export(tmp_path / "out", precision="float32")
    manifest = load_manifest(out)
    (out / FILENAME).unlink()
    with monkeypatch.context() as patched:
        patched.setattr(module.Stages, "logits", interrupt)
        with pytest.raises(KeyboardInterrupt):
            check(out, TINY, manifest=manifest)
    assert not (out / FILENAME).exists()
    found = check(out, TINY, manifest=manifest)
    assert load_manifest(out).parity == found


def test_outputs_that_are_not_finite_are_refused_without_a_reference(tmp_path, monkeypatch):
    out = export(tmp_path / "out", precision="float32")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert check(out, TINY) == ()
    monkeypatch.setattr(module.Stages, "logits", lambda *_: np.full((2, 3), np.nan, np.float32))
    with pytest.raises(ExportError, match="decoder: 6 of 6 outputs are not finite"):
        check(out, TINY)
    assert not (out / FILENAME).exists()


def test_artifacts_of_another_model_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match="made from another model"):
        verify(export(tmp_path / "out", precision="float32"), REFERENCE / "internvl3-tiny")


def test_damaged_artifacts_are_found_by_their_hash(tmp_path):
    out = export(tmp_path / "out", precision="float32")
    data = out / "decoder.onnx.data"
    data.write_bytes(bytes(data.stat().st_size))
    with pytest.raises(ArtifactError, match=r"decoder\.onnx\.data' does not match its hash"):
        verify(out, TINY)
