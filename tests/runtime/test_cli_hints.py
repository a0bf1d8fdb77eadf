"""What the command line says of a processor that could do better."""

import pytest
from tests.conftest import REFERENCE
from typer.testing import CliRunner

from vitrail import machine
from vitrail.cli import app, make, serve
from vitrail.manifest import load_manifest
from vitrail.providers import Cpu, Cuda, OpenVino
from vitrail_export.options import ExportOptions


@pytest.fixture
def amx(monkeypatch):
    for module in (make, serve):
        monkeypatch.setattr(module, "cpu_features", lambda: frozenset({"amx_int8", "amx_bf16"}))


def test_features_are_read_from_the_kernels_list(monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu amx_int8 avx512_bf16\nflags\t\t: fpu\n")
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    assert machine.cpu_features() == {"fpu", "amx_int8", "avx512_bf16"}
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "none")
    assert machine.cpu_features() == frozenset()


@pytest.mark.usefixtures("amx")
def test_int4_without_int8_products_is_told_of_them():
    assert "--prefill w8a8" in make._hints(ExportOptions())[0]
    for other in (
        {"prefill": "w8a8"},
        {"precision": "w8a8"},
        {"dialect": "standard"},
        {"activations": "float16"},
    ):
        assert "--prefill" not in "".join(make._hints(ExportOptions(**other)))


@pytest.mark.usefixtures("amx")
def test_vision_in_float_is_told_of_static_int8():
    for precision in ("float32", "float16"):
        assert "--vision-precision int8-static" in make._hints(ExportOptions(vision_precision=precision))[-1]
    fitted = ExportOptions(prefill="w8a8", vision_precision="int8-static", calibration=REFERENCE / "images")
    assert make._hints(fitted) == make._hints(ExportOptions(prefill="w8a8", vision_precision="int8")) == []
    assert make._hints(ExportOptions(dialect="standard")) == []


def test_other_processors_are_told_nothing(monkeypatch):
    monkeypatch.setattr(make, "cpu_features", lambda: frozenset({"avx2"}))
    assert make._hints(ExportOptions()) == []


@pytest.mark.usefixtures("amx")
def test_an_export_ends_with_the_hint(tmp_path):
    out = tmp_path / "two words"
    arguments = ["export", str(REFERENCE / "internvl2-tiny"), "--out", str(out), "--no-check"]
    told = CliRunner().invoke(app, arguments).stderr
    assert "--prefill w8a8" in told
    assert f"next: vitrail serve '{out}'" in told


@pytest.mark.usefixtures("amx")
def test_float_vision_on_a_cpu_is_told_of_openvino(exported):
    manifest = load_manifest(exported("internvl2-tiny"))
    assert serve._is_for_bfloat16(manifest, Cpu())
    assert not serve._is_for_bfloat16(manifest, OpenVino())
    assert not serve._is_for_bfloat16(manifest, Cuda())
    int8 = manifest.model_copy(update={"vision": manifest.vision.model_copy(update={"precision": "int8"})})
    assert not serve._is_for_bfloat16(int8, Cpu())
