"""Exports in bfloat16 at run time: refused where nothing computes in it, counted, and bound by CUDA's sessions.

Those run here on a graph that emulates it, with the host's memory as the device's.
"""

from functools import partial

import numpy as np
import pytest
from tests.runtime.test_cuda_sessions import CAPACITY, SLOTS, device
from tests.runtime.trt.steps import a_conversation, step
from typer.testing import CliRunner

from vitrail.cli import app
from vitrail.engine import Engine
from vitrail.errors import OptionError
from vitrail.manifest import load_manifest
from vitrail.plan.memory import graph_bytes, plan_memory
from vitrail.plan.model import Load, check_target, model_of
from vitrail.providers import Cpu, OpenVino
from vitrail.session.contract import STAGES
from vitrail.session.cuda import OrtCudaDecoder, OrtCudaVision
from vitrail.session.cuda_buffers import Device
from vitrail.session.open import open_decoder, open_vision
from vitrail.session.ort import OrtDecoder, OrtVision
from vitrail.triton.targets import served_models
from vitrail_export.emulation import emulated

ALL = {"precision": "bfloat16", "vision_precision": "bfloat16"}
HALF = {"precision": "float16", "vision_precision": "float16"}
FORMS = [ALL, {**ALL, "dialect": "standard"}]
GIB = 1 << 30


@pytest.fixture(scope="module")
def export(exported):
    """(directory, manifest)"""
    directory = exported("internvl2-tiny", **ALL)
    return directory, load_manifest(directory)


@pytest.fixture(scope="module", params=FORMS, ids=str)
def emulation(request, exported):
    """(directory, manifest) of graphs that a CPU can run, whose inputs and outputs are the export's own."""
    directory = exported("internvl2-tiny", **request.param)
    with emulated(directory, load_manifest(directory), [*STAGES, "decoder"]) as manifest:
        yield directory, manifest


@pytest.mark.parametrize("graphs", [True, False])
def test_logits_on_the_device_are_those_on_the_host(emulation, graphs):
    directory, manifest = emulation
    sizes = {"slots": SLOTS, "capacity": CAPACITY, "optimize": False}
    host = OrtDecoder(directory, manifest, provider=Cpu(1), **sizes)
    there = OrtCudaDecoder(directory, manifest, device=device(graphs=graphs), **sizes)
    for expected, found in zip(a_conversation(host), a_conversation(there), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)
    assert there.embed(np.arange(3)).dtype == np.float32


def test_a_copied_prefix_answers_as_its_source(emulation):
    directory, manifest = emulation
    session = OrtCudaDecoder(
        directory, manifest, device=device(), slots=SLOTS, capacity=CAPACITY, optimize=False
    )
    session.forward(step(session, 0, [0], new=30))
    session.copy(0, 3, 20)
    again = step(session, 0, [20], wanted=[0])
    expected = session.forward(again)
    found = session.forward(
        again.__class__(3, again.inputs_embeds, again.past_lengths, again.logit_positions)
    )
    np.testing.assert_array_equal(found, expected)


def test_pictures_on_the_device_are_those_on_the_host(emulation):
    directory, manifest = emulation
    tiles = np.random.default_rng(0).integers(0, 256, (3, 3, *[manifest.vision.tile_size] * 2), np.uint8)
    host = OrtVision(directory, manifest, provider=Cpu(1), tiles_per_run=2, optimize=False)
    there = OrtCudaVision(directory, manifest, device=device(), tiles_per_run=2, optimize=False)
    found = there.see(tiles)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, host.see(tiles), atol=1e-5, rtol=0)


@pytest.mark.parametrize("provider", [Cpu(), OpenVino()], ids=str)
def test_a_cpu_is_refused_before_anything_is_loaded_with_what_would_do(export, monkeypatch, provider):
    monkeypatch.setattr("vitrail.session.ort.open_session", None)
    told = r"computes? in bf16, .*GPUs of sm_80 or newer, and this is a CPU; serve it with --provider cuda"
    with pytest.raises(
        OptionError, match=rf"^vision encoder and projector {told}.*another --vision-precision"
    ):
        open_vision(*export, provider)
    with pytest.raises(OptionError, match=rf"^language model {told}.*another --precision and --activations"):
        open_decoder(*export, provider, slots=1, capacity=16)
    with pytest.raises(OptionError, match=told):
        Engine.load(export[0], provider=provider)


def test_a_gpu_older_than_sm_80_is_refused_before_anything_is_loaded(export, monkeypatch):
    monkeypatch.setattr("vitrail.session.cuda.open_session", None)
    old = device()
    old.driver.gpu = old.driver.gpu.__class__("Old GPU", "sm_75", (13, 0))
    for opened in (partial(OrtCudaDecoder, slots=1, capacity=16), OrtCudaVision):
        with pytest.raises(OptionError, match=r"sm_80 or newer, and this GPU is sm_75; export with another"):
            opened(*export, device=old)
    assert isinstance(old, Device)
    assert not old.driver.held


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_it_is_planned_as_float16_is_but_for_pictures_that_pass_as_float32(exported, form):
    manifests = [
        load_manifest(exported("internvl2-tiny", **{**each, "dialect": form.get("dialect", "ort")}))
        for each in (form, HALF)
    ]
    load = Load(slots=3, context_tokens=512)
    models = [model_of(manifest, "cuda") for manifest in manifests]
    assert len({model.kv_bytes_per_token for model in models}) == 1
    brain, half = (plan_memory(model, load, target="cuda").by_kind for model in models)
    for kind in ("kv cache", "activations", "workspace"):
        assert brain[kind] == half[kind]
    assert brain["weights"] == pytest.approx(half["weights"], rel=0.01)
    assert half["pictures"] < brain["pictures"] < 2 * half["pictures"]
    assert graph_bytes(manifests[0], ("decoder",), load).keys() == {
        "weights of decoder",
        "activations of decoder",
    }


def test_a_plan_for_a_cpu_or_an_old_gpu_is_refused(export):
    _, manifest = export
    for target, gpu in (("cpu", None), ("cuda", "sm_75")):
        with pytest.raises(OptionError, match=r"computes? in bf16"):
            check_target(manifest, target, gpu=gpu)
    check_target(manifest, "cuda", gpu="sm_100")


def test_plans_of_what_is_not_exported_yet():
    def plan(target):
        command = ["plan", "internvl2-2b", "--precision", "bf16", "--vision-precision", "bf16"]
        return CliRunner().invoke(app, [*command, "--memory", "24GiB", "--target", target])

    assert '"decoder": "bfloat16"' in plan("cuda").output
    assert '"kv_cache": "bfloat16"' in plan("cuda").output
    refused = plan("cpu")
    assert refused.exit_code
    assert "in bf16, which" in " ".join(refused.output.split())


def test_triton_s_own_backends_hand_pictures_on_in_float32(export):
    directory, manifest = export
    models = served_models(manifest, directory, target="cuda", tiles_per_run=8)
    assert [each.dtype for each in models] == ["float32", "float32"]
