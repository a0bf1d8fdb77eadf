"""Vision on OpenVINO, the language model on ONNX Runtime: what it computes, and what it refuses."""

from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest
from tests.conftest import REFERENCE, case_messages, case_options, expected_cases

from vitrail.engine import Engine
from vitrail.errors import OptionError
from vitrail.manifest import load_manifest
from vitrail.providers import Cpu, OpenVino
from vitrail.session import openvino
from vitrail.session.open import open_decoder, open_vision
from vitrail.session.ort import OrtDecoder


def missing():
    """Why OpenVINO cannot run here, or nothing."""
    try:
        openvino.add_openvino(ort.SessionOptions(), OpenVino())
    except OptionError as error:
        return str(error)
    return ""


needs_openvino = pytest.mark.skipif(bool(missing()), reason=missing() or "it is here")


@pytest.fixture
def nowhere():
    """Forget the device that was found, before and after."""
    openvino.cpu_device.cache_clear()
    yield
    openvino.cpu_device.cache_clear()


def tiles(manifest, count=3):
    size = manifest.vision.tile_size
    smooth = np.add.outer(np.linspace(0, 200, size), np.linspace(0, 55, size))
    return np.stack([np.roll(np.stack([smooth] * 3), 31 * n, -1) for n in range(count)]).astype(np.uint8)


def cosine(a, b):
    a, b = a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@needs_openvino
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_bf16_stays_close_to_float32(exported, precision):
    directory = exported("internvl2-tiny", precision="float32", vision_precision=precision)
    manifest = load_manifest(directory)
    pictures = tiles(manifest)
    float32 = exported("internvl2-tiny", precision="float32")
    exact = open_vision(float32, load_manifest(float32), Cpu())
    found = open_vision(directory, manifest, OpenVino()).see(pictures)
    assert cosine(found, exact.see(pictures)) > 0.999


@needs_openvino
def test_fp32_equals_the_reference_answers(exported):
    directory = exported("internvl2-tiny", precision="float32")
    case = expected_cases("internvl2-tiny")["astronaut"]
    with Engine.load(directory, provider="openvino,precision=fp32") as engine:
        answer = engine.chat(case_messages(case), **case_options(case))
    assert list(answer.choices[0].token_ids) == case["greedy_ids"]


@needs_openvino
def test_a_tile_does_not_depend_on_its_neighbours(exported):
    directory = exported("internvl2-tiny", precision="float32")
    manifest = load_manifest(directory)
    session, pictures = open_vision(directory, manifest, OpenVino()), tiles(load_manifest(directory))
    together = session.see(pictures)
    for at, one in enumerate(pictures):
        np.testing.assert_allclose(session.see(one[None])[0], together[at], atol=0.05)


@needs_openvino
def test_the_language_model_stays_on_onnxruntime(exported):
    directory = exported("internvl2-tiny", precision="float32")
    session = open_decoder(directory, load_manifest(directory), OpenVino(threads=2), slots=1, capacity=64)
    assert isinstance(session, OrtDecoder)
    assert session.session.get_providers() == ["CPUExecutionProvider"]


@needs_openvino
def test_static_int8_runs_there_as_a_whole_and_as_on_onnxruntime(exported):
    options = {"vision_precision": "int8-static", "calibration": REFERENCE / "images"}
    directory = exported("internvl2-tiny", precision="float32", **options)
    manifest, pictures = load_manifest(directory), tiles(load_manifest(directory))
    session = open_vision(directory, manifest, OpenVino())
    for each in session.sessions.values():
        placed = each.get_provider_graph_assignment_info()
        assert {found.ep_name for found in placed} == {openvino.OPENVINO}
    own = open_vision(directory, manifest, Cpu()).see(pictures)
    assert cosine(session.see(pictures), own) > 0.999
    exact = open_vision(directory, manifest, OpenVino(precision="fp32")).see(pictures)
    assert cosine(exact, own) > 0.9995


def refusal(directory):
    with pytest.raises(OptionError) as refused:
        open_vision(directory, load_manifest(directory), OpenVino())
    return str(refused.value)


def test_int8_vision_is_refused(exported):
    told = refusal(exported("internvl2-tiny", precision="float32", vision_precision="int8"))
    assert "no kernel for, DynamicQuantizeMatMul: the CPU would compute" in told
    assert told.endswith("export again with --vision-precision fp16 or int8-static")


@needs_openvino
def test_what_is_refused_by_its_manifest_would_be_refused_once_it_is_loaded(exported, monkeypatch):
    directory = exported("internvl2-tiny", precision="float32", vision_precision="int8")
    told = refusal(directory)
    monkeypatch.setattr("vitrail.session.open.check_kernels", lambda *_: None)
    assert refusal(directory) == told


@pytest.mark.usefixtures("nowhere")
def test_a_missing_plugin_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(openvino, "find_spec", lambda _name: None)
    with pytest.raises(
        OptionError,
        match=r"onnxruntime-ep-openvino, which is not installed; pip install 'vitrail\[openvino\]'",
    ):
        openvino.cpu_device(OpenVino())


@needs_openvino
@pytest.mark.usefixtures("nowhere")
def test_a_processor_that_openvino_does_not_list_is_told(monkeypatch):
    monkeypatch.setattr(openvino.ort, "get_ep_devices", list)
    with pytest.raises(OptionError, match="lists Intel processors only; use cpu"):
        openvino.cpu_device(OpenVino())


@pytest.mark.usefixtures("nowhere")
def test_a_plugin_that_cannot_be_loaded_is_told_with_its_cause(monkeypatch):
    def broken():
        raise RuntimeError("Failed to load library plugin.so: file too short\nand more")

    monkeypatch.setattr(openvino, "find_spec", lambda _name: "found")
    monkeypatch.setattr(openvino, "_register", broken)
    with pytest.raises(
        OptionError, match=r"cannot load OpenVINO's plugin \(.*file too short\); .* or use cpu"
    ):
        openvino.cpu_device(OpenVino())


def test_a_processor_without_bf16_is_told(monkeypatch):
    device = SimpleNamespace(ep_metadata={"OPTIMIZATION_CAPABILITIES": "FP32 INT8"})
    monkeypatch.setattr(openvino, "cpu_device", lambda _provider: device)
    with pytest.raises(OptionError, match="computes in bf16, which this processor does not"):
        openvino.add_openvino(ort.SessionOptions(), OpenVino())
