"""Which builder can build what, and what it says where it cannot."""

from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from vitrail.cli import app
from vitrail.errors import ArtifactError, OptionError
from vitrail.manifest import load_manifest
from vitrail_export.engine import builders
from vitrail_export.engine.builders import Builder, open_builder
from vitrail_export.engine.compile import Phases
from vitrail_export.engine.options import EngineOptions
from vitrail_export.engine.shapes import decoder_profiles, vision_profile
from vitrail_export.engine.timing import read_cache, write_cache

CAPABILITIES = ("NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
RTX = Builder(
    "tensorrt-rtx",
    SimpleNamespace(
        __version__="1.7", ComputeCapability=SimpleNamespace(__members__=dict.fromkeys(CAPABILITIES))
    ),
)
FULL = Builder("tensorrt", SimpleNamespace(__version__="11.4"))


@pytest.fixture
def gpu(monkeypatch):
    """A machine whose GPU has this compute capability."""

    def choose(target):
        monkeypatch.setattr(
            builders, "LibCuda", lambda device: SimpleNamespace(gpu=SimpleNamespace(target=target))
        )

    return choose


def test_rtx_builds_for_the_targets_that_are_named_and_for_the_rtx_series_otherwise(gpu):
    gpu("sm_120")
    assert RTX.targets(("sm_75", "current", "sm_120")) == ("sm_75", "sm_120")
    assert RTX.targets(()) == ("sm_86", "sm_89", "sm_120")


@pytest.mark.parametrize(
    ("target", "name"),
    [("sm_90", "Hopper"), ("sm_87", "Jetson Orin"), ("sm_110", "Jetson Thor"), ("sm_100", "Blackwell B200")],
)
def test_what_rtx_does_not_build_for_is_built_on_the_device_itself(target, name):
    with pytest.raises(
        OptionError,
        match=rf"1\.7 builds for sm_75, .*sm_121, not for {target} \({name}\); build on the device itself: "
        "vitrail engine DIR --with tensorrt --targets current",
    ):
        RTX.targets((target,))


@pytest.mark.parametrize("target", ["sm86", "8.6", "gpu", "NONE", "sm_", ""])
def test_a_target_that_is_none_is_refused_with_those_that_are(target):
    with pytest.raises(OptionError, match=rf"builds for sm_75, .* not for '{target}'; choose among these"):
        RTX.targets((target,))


def test_current_needs_a_driver():
    with pytest.raises(
        OptionError, match=r"target 'current' is the GPU of this machine: .*driver.*--targets sm_86"
    ):
        RTX.targets(("current",))


def test_full_tensorrt_builds_for_the_gpu_it_runs_on_alone(gpu):
    gpu("sm_87")
    assert FULL.targets(()) == FULL.targets(("current",)) == FULL.targets(("sm_87",)) == ("sm_87",)
    with pytest.raises(OptionError, match=r"sm_87 here; build for sm_90 on such a device"):
        FULL.targets(("sm_90",))


@pytest.mark.parametrize(
    ("precision", "target", "least"), [("fp8", "sm_86", "sm_89"), ("bf16", "sm_75", "sm_80")]
)
def test_a_precision_that_a_target_does_not_know_is_refused(precision, target, least):
    with pytest.raises(OptionError, match=rf"{precision} needs GPUs from {least} on, {target} is older"):
        RTX.check_precision(precision, (target, "sm_120"))
    RTX.check_precision(precision, ("sm_120", "sm_89"))


@pytest.mark.parametrize(
    ("name", "cure"),
    [("tensorrt", "JetPack and NVIDIA's"), ("tensorrt-rtx", r"pip install 'vitrail\[tensorrt-rtx\]'")],
)
def test_a_builder_that_is_not_installed_is_named_with_how_to_install_it(monkeypatch, name, cure):
    monkeypatch.setitem(builders.PACKAGES, name, "no_such_package")
    with pytest.raises(OptionError, match=rf"--with {name} needs the Python package no_such_package.*{cure}"):
        open_builder(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-tiles", "0"], "max_tiles is 0; it must be at least 1"),
        (["--precision", "fp8"], "fp8 is calibrated on pictures"),
        (["--with", "tensorrt-rtx", "--targets", "sm_90"], "not for sm_90 (Hopper)"),
        (["--decoder", "--context", "100000"], "a context of 100000 tokens is outside 512"),
        (["--pictures", "nowhere.png"], "nowhere.png"),
        (["--decoder"], "is in dialect ort, TensorRT needs standard"),
    ],
)
def test_the_command_refuses_in_one_line(exported, arguments, message):
    pytest.importorskip("tensorrt_rtx")
    result = CliRunner().invoke(app, ["engine", str(exported("internvl2-tiny")), *arguments])
    assert result.exit_code in (2, 3), result.stderr
    assert message in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr


def test_a_timing_cache_is_read_as_it_was_written_and_a_damaged_one_is_refused(tmp_path):
    path = tmp_path / "timing.cache"
    assert read_cache(path) == b""
    write_cache(path, b"measured")
    assert read_cache(path) == b"measured"
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:10], b"", whole[:-1] + b"x", b"x" + whole[1:]):
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=r"timing\.cache' is damaged; remove it: rm "):
            read_cache(path)


def test_progress_grows_through_nested_phases_to_its_end():
    seen = []
    phases = Phases(lambda _phase, done: seen.append(done))
    phases.start("build", 2)
    for step in range(2):
        phases.start("inner", 4)
        for inner in range(4):
            phases.step("inner", inner)
        phases.finish("inner")
        phases.step("build", step)
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)
    assert len(set(seen)) == 9


def test_an_interrupt_ends_a_build_through_its_monitor():
    def interrupted(_phase, _done):
        raise KeyboardInterrupt

    phases = Phases(interrupted)
    phases.start("build", 2)
    assert phases.cancelled


def test_a_picture_s_thirteen_tiles_are_what_an_engine_is_best_at(exported):
    manifest = load_manifest(exported("internvl2-tiny"))
    for most, best in ((13, 13), (40, 13), (3, 3)):
        shapes = vision_profile(manifest, max_tiles=most).inputs["tiles"]
        assert (shapes.min[0], shapes.opt[0], shapes.max[0]) == (1, best, most)


def test_a_decoder_has_a_profile_for_answers_and_one_for_prompts(exported):
    manifest = load_manifest(exported("internvl2-tiny"))
    decode, prefill = decoder_profiles(manifest, slots=4, capacity=1024, chunk=512)
    assert [profile.name for profile in (decode, prefill)] == ["decode", "prefill"]
    assert decode.inputs["past.0.key"].max[:1] == (4,)
    assert prefill.inputs["inputs_embeds"].max[:2] == (1, 512)
    assert {each.inputs["past.0.key"].min[2] for each in (decode, prefill)} == {1024}


def test_the_decoder_s_context_stays_within_the_model(exported):
    manifest = load_manifest(exported("internvl2-tiny"))
    limit = manifest.decoder.context_tokens
    assert EngineOptions().capacity(manifest) == min(limit, 8192)
    for wanted in (limit + 1, 511):
        with pytest.raises(OptionError, match=f"a context of {wanted} tokens is outside 512"):
            EngineOptions(context_tokens=wanted).capacity(manifest)
