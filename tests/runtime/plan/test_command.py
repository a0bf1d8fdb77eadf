"""`vitrail plan`: the forms and settings that it proposes, and what it refuses."""

import re
from dataclasses import replace

import pytest
from tests.runtime.plan.planning import LOAD, plan_of
from typer.testing import CliRunner

from vitrail.cli import app
from vitrail.cli.plan import usable_context
from vitrail.errors import CheckpointError, OptionError
from vitrail.manifest import load_manifest
from vitrail.plan.memory import plan_memory
from vitrail.plan.model import Load
from vitrail.plan.propose import propose
from vitrail.plan.size import GIB
from vitrail.providers import OpenVino
from vitrail.session.open import open_vision
from vitrail_export.options import ExportOptions
from vitrail_export.sizes import find_source, sized


def test_the_best_setting_is_the_most_precise_that_fits(two_billion):
    larger = sized(find_source("internvl2-2b"), ExportOptions(precision="int8"))
    models = [larger, two_billion]
    least = replace(LOAD, tiles_per_run=1)
    needs = [plan_memory(model, least, target="jetson").total_bytes for model in models]
    chosen = [propose(models, LOAD, target="jetson", memory_bytes=memory).plan for memory in needs]
    assert [plan.model.decoder.precision for plan in chosen] == ["int8", "int4"]
    assert chosen[0].load == least
    roomy = propose(models, LOAD, target="jetson", memory_bytes=64 * GIB)
    assert roomy.plan.load.tiles_per_run == 13
    assert roomy.most_slots > 1
    assert roomy.most_context_tokens == two_billion.decoder.context_tokens


def test_where_the_load_does_not_fit_its_context_shrinks_before_its_slots(two_billion):
    load = Load(slots=4, context_tokens=8192)
    memory = plan_memory(two_billion, Load(slots=4, context_tokens=2048, tiles_per_run=1)).total_bytes
    chosen = propose([two_billion], load, target="cpu", memory_bytes=memory).plan.load
    assert (chosen.slots, chosen.context_tokens) == (4, 2048)
    assert propose([two_billion], load, target="cpu", memory_bytes=GIB) is None


def test_the_command_prints_a_table_and_one_line_of_json(exported):
    table, record = plan_of("internvl2-2b", "--memory", "8GiB", "--target", "jetson", "--streams", 1)
    assert "internvl2-2b on jetson in 8.00 GiB: 1 x 4096 tokens" in table[0]
    assert len(table) == 2 + len(record["plans"]) + 1
    assert {plan["decoder"] for plan in record["plans"]} == {"float16", "int8", "int4"}
    assert record["best"]["total_bytes"] <= 8 * GIB
    _, record = plan_of(exported("internvl2-tiny"), "--tiles-per-run", 2, "--memory", "8GiB")
    assert [plan["tiles_per_run"] for plan in record["plans"]] == [2]


@pytest.mark.parametrize(
    ("options", "forms"),
    [
        ((), ["int8 float32", "w8a8 float32", "int4 float32", "int4+w8a8 float32", "int4 int8"]),
        (("--precision", "w8a8"), ["w8a8 float32"]),
        (("--prefill", "w8a8"), ["int4+w8a8 float32"]),
        (("--precision", "int8", "--prefill", "w8a8", "--vision-precision", "int8"), ["int8+w8a8 int8"]),
        (("--precision", "int4", "--prefill", "same", "--provider", "openvino"), ["int4 float16"]),
        (
            ("--precision", "fp32", "--provider", "openvino", "--vision-precision", "fp32"),
            ["float32 float32"],
        ),
    ],
)
def test_the_forms_that_are_planned_are_those_that_are_asked_for(options, forms):
    _, record = plan_of("internvl2-2b", "--memory", "32GiB", "--tiles-per-run", 4, *options)
    found = [
        plan["decoder"] + ("+w8a8" if plan["prefill"] == "w8a8" else "") + " " + plan["vision"]
        for plan in record["plans"]
    ]
    assert found == forms
    assert {plan["openvino"] for plan in record["plans"]} == {"openvino" in options}


def test_where_nothing_fits_the_command_fails_behind_its_table_and_says_what_would_do():
    arguments = ["internvl2-2b", "--target", "jetson", "--streams", 2]
    table, record = plan_of(*arguments, "--memory", "2GiB", exit_code=2)
    assert record["best"] is None
    assert not any(plan["fits"] for plan in record["plans"])
    assert len(table) == 2 + len(record["plans"])
    said = CliRunner().invoke(app, ["plan", *map(str, arguments), "--memory", "2GiB"]).stderr
    found = re.search(
        r"nothing fits: the memory is 2\.00 GiB, and the least there is, decoder int4, vision float16, "
        r"--tiles-per-run 1 --slots 1 --context 1024, takes ([\d.]+) GiB; take a smaller model",
        said,
    )
    assert found, said
    least_gib = float(found[1])
    table, record = plan_of(*arguments, "--memory", f"{least_gib + 0.01}GiB")
    assert "--slots 1 --context 1024 (less than the 2 x 4096 asked)" in table[-1]
    plan_of(*arguments, "--memory", f"{least_gib - 0.01}GiB", exit_code=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--provider", "cuda"), "plan a GPU with --target"),
        (("--provider", "openvino", "--target", "jetson"), "is for --target cpu, and the target is jetson"),
        (("--prefill", "w8a8", "--target", "jetson"), "w8a8 is for CPUs"),
        (("--kv-cache", "int8", "--target", "jetson"), "int8 KV cache is for dialect ort"),
        (("--streams", "0"), "streams is 0; it must be at least 1"),
        (("--tiles-per-run", "0"), "tiles_per_run is 0; it must be at least 1"),
        (("--vision-precision", "int8", "--provider", "openvino"), "provider openvino has no kernel for"),
        (("--vision-precision", "int8", "--target", "cuda"), "provider cuda:0 has no kernel for"),
    ],
)
def test_forms_that_do_not_go_together_are_refused(options, words):
    result = CliRunner().invoke(app, ["plan", "internvl2-2b", "--memory", "8GiB", *options])
    assert (result.exit_code, words in result.stderr) == (2, True), result.stderr


def test_an_export_is_planned_as_it_is(exported):
    result = CliRunner().invoke(app, ["plan", str(exported("internvl2-tiny")), "--kv-cache", "int8"])
    assert result.exit_code == 2
    assert "leave out --kv-cache, or name its checkpoint" in result.stderr


def test_no_export_is_planned_on_openvino_that_it_would_refuse_to_load(exported):
    directory = exported("internvl2-tiny", vision_precision="int8")
    planned = CliRunner().invoke(app, ["plan", str(directory), "--memory", "8GiB", "--provider", "openvino"])
    with pytest.raises(OptionError) as refused:
        open_vision(directory, load_manifest(directory), OpenVino())
    assert (planned.exit_code, planned.stderr) == (2, f"error: {refused.value}\n")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "w8a8"}, "precision w8a8 is for CPUs"),
        ({"vision_precision": "int8"}, "int8 is for CPUs"),
    ],
)
def test_no_gpu_is_planned_for_an_export_that_is_for_cpus(exported, options, words):
    arguments = ["plan", str(exported("internvl2-tiny", **options)), "--memory", "8GiB"]
    for target, code in (("cpu", 0), ("jetson", 2), ("cuda", 2)):
        result = CliRunner().invoke(app, [*arguments, "--target", target])
        assert (result.exit_code, words in result.stderr) == (code, code == 2), result.stderr


def test_no_gpu_is_planned_for_a_language_model_that_onnxruntime_has_no_kernels_for_there(exported):
    arguments = ["plan", str(exported("internvl2-tiny")), "--memory", "8GiB", "--target", "cuda"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "GroupQueryAttention of float32" in result.stderr


def test_without_a_gpu_its_memory_is_to_be_given(exported, monkeypatch):
    def no_gpu(_device_id):
        raise OptionError("there is no NVIDIA driver here")

    monkeypatch.setattr("vitrail.session.cuda_driver.LibCuda", no_gpu)
    artifacts = exported("internvl2-tiny", precision="float16")
    result = CliRunner().invoke(app, ["plan", str(artifacts), "--target", "cuda"])
    assert result.exit_code == 2
    assert "--memory is needed: there is no NVIDIA driver" in result.stderr


def test_what_is_no_model_is_told_what_may_be_given(tmp_path):
    with pytest.raises(CheckpointError, match="no export, no directory with"):
        find_source(str(tmp_path))
    result = CliRunner().invoke(app, ["plan", str(tmp_path)])
    assert result.exit_code == 3
    assert "internvl3-8b" in result.stderr


def test_a_context_beyond_the_model_is_refused_and_never_the_default(exported):
    artifacts = exported("internvl2-tiny")
    limit = load_manifest(artifacts).decoder.context_tokens
    arguments = ["plan", str(artifacts), "--memory", "8GiB", "--context", str(limit + 1)]
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, f"this model reaches {limit}; lower it" in result.stderr) == (2, True)
    assert [usable_context(None, limit) for limit in (2048, 32768)] == [2048, 4096]


def test_a_published_model_may_be_named_by_its_hub_id():
    assert find_source("OpenGVLab/InternVL2-2B") == find_source("internvl2-2b")
