"""What a model takes, told before it is loaded."""

import json
import re
import shutil
from dataclasses import replace

import pytest
from tests.conftest import REFERENCE
from tests.repository.engines import with_engines
from tests.runtime.engine_fakes import HostDriver
from tests.runtime.engine_fakes import with_engines as with_decoder
from typer.testing import CliRunner

from vitrail.cli import app
from vitrail.engine import Engine
from vitrail.errors import CheckpointError, OptionError
from vitrail.manifest import load_manifest
from vitrail.plan.check import OVERRIDE, check_device, check_memory
from vitrail.plan.memory import KINDS, plan_memory
from vitrail.plan.model import TARGETS, Load, intermediate_size, model_of
from vitrail.plan.propose import propose
from vitrail.plan.size import GIB, MIB, parse_size, show_size
from vitrail.providers import parse_provider
from vitrail.runs import cpu_tiles_per_run
from vitrail.triton.repository import ServingSettings
from vitrail.triton.server import Server
from vitrail_export.forms import Wanted, forms
from vitrail_export.options import ExportOptions
from vitrail_export.sizes import find_source, sized

LOAD = Load(slots=1, context_tokens=4096)


@pytest.fixture(scope="module")
def two_billion():
    """InternVL2-2B as it would be exported with int4 weights."""
    return sized(find_source("internvl2-2b"), ExportOptions(precision="int4"))


def plan_of(*arguments, exit_code=0):
    result = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    assert result.exit_code == exit_code, result.stderr
    *table, line = result.stdout.splitlines()
    return table, json.loads(line)


def test_sizes_are_read_and_shown_with_their_units():
    assert [parse_size(text) for text in ("8GiB", "512 MiB", "1.5GiB", "16GB", "77")] == [
        8 * GIB,
        512 * MIB,
        3 * GIB // 2,
        16 * 10**9,
        77,
    ]
    assert [show_size(size) for size in (5 * GIB, 64 * MIB)] == ["5.00 GiB", "64 MiB"]
    for text in ("", "eight", "8GBit", "-1GiB", "0MiB", "1e3GiB"):
        with pytest.raises(OptionError, match="is no size of memory; give one such as 8GiB"):
            parse_size(text)


@pytest.mark.parametrize("precision", ["float32", "int4"])
def test_a_checkpoint_s_plan_is_that_of_its_export(exported, precision):
    source = find_source(str(REFERENCE / "internvl3-tiny"))
    planned = sized(source, ExportOptions(precision=precision))
    found = model_of(load_manifest(exported("internvl3-tiny", precision=precision)))
    for stage, size in planned.weights_bytes.items():
        assert (
            size <= found.weights_bytes[stage] <= size + 200_000
        )  # the graph itself, and pages that are not full
    assert (planned.vision, planned.decoder) == (found.vision, found.decoder)
    assert (planned.positions, planned.tiles_per_picture) == (found.positions, found.tiles_per_picture)


def test_a_plan_of_static_int8_is_that_of_its_export(exported):
    options = {"vision_precision": "int8-static", "calibration": REFERENCE / "images"}
    wanted = Wanted(precision="int4", vision_precision="int8-static")
    (planned, *_) = [
        sized(find_source(str(REFERENCE / "internvl3-tiny")), form) for form in forms("cpu", wanted)
    ]
    found = model_of(load_manifest(exported("internvl3-tiny", precision="int4", **options)))
    assert planned.vision == found.vision
    for stage in ("vision_encoder", "projector"):
        size = planned.weights_bytes[stage]
        assert size <= found.weights_bytes[stage] <= 1.3 * size
    assert plan_memory(planned, LOAD, target="cpu").total_bytes > 0


def test_an_mlp_is_as_wide_as_its_weights_tell(two_billion):
    assert two_billion.intermediate_size == 8192
    told = intermediate_size(two_billion.decoder, two_billion.weights_bytes["decoder"])
    assert told == pytest.approx(8192, rel=0.01)


def test_where_tensorrt_runs_a_stage_its_engine_is_what_counts(exported, tmp_path):
    manifest = load_manifest(with_engines(exported("internvl2-tiny"), tmp_path / "artifacts"))
    graphs, engines = (model_of(manifest, target).weights_bytes for target in ("cuda", "jetson"))
    assert engines["vision_encoder"] == len("vision_encoder sm_90") < graphs["vision_encoder"]
    assert engines["decoder"] == graphs["decoder"]


@pytest.mark.parametrize("target", ["cpu", "cuda", "tensorrt"])
def test_a_gpu_without_engines_is_refused(exported, target):
    asked = ("--target", target, "--memory", "8GiB", "--gpu", "sm_90")
    result = CliRunner().invoke(app, ["plan", str(exported("internvl2-tiny")), *asked])
    assert result.exit_code == 2
    assert "--gpu sm_90 names no engines" in result.stderr


def test_of_several_engines_the_gpu_s_own_is_planned_and_without_a_gpu_the_largest(exported, tmp_path):
    targets = ("sm_100", "sm_90")
    manifest = load_manifest(
        with_engines(exported("internvl2-tiny"), tmp_path / "artifacts", targets=targets)
    )

    def planned(gpu):
        return model_of(manifest, "tensorrt", gpu=gpu).weights_bytes["vision_encoder"]

    assert [planned(gpu) for gpu in (*targets, None)] == [
        len(f"vision_encoder {each}") for each in (*targets, "sm_100")
    ]
    told = plan_of(tmp_path / "artifacts", "--target", "tensorrt", "--memory", "8GiB", "--gpu", "sm_90")[1]
    largest = plan_of(tmp_path / "artifacts", "--target", "tensorrt", "--memory", "8GiB")[1]
    spared = largest["plans"][0]["weights_bytes"] - told["plans"][0]["weights_bytes"]
    assert spared == 2  # a digit of each engine
    assert planned("sm_89") == model_of(manifest, "cuda").weights_bytes["vision_encoder"]


@pytest.fixture(scope="module")
def engines(exported, tmp_path_factory):
    """A manifest with engines of every stage, for slots of 512 tokens, chunks of 32 and 3 tiles."""
    export = exported("internvl3-tiny", precision="float16", vision_precision="float16", dialect="standard")
    return with_decoder(shutil.copytree(export, tmp_path_factory.mktemp("engines") / "export"))


def test_an_engine_takes_what_it_was_built_for_whatever_is_asked(engines):
    model, contract = model_of(engines, "tensorrt"), engines.decoder

    def planned(**changed):
        return plan_memory(model, replace(LOAD, **{"context_tokens": 64, **changed}), target="tensorrt")

    token_bytes = 2 * contract.layers * contract.kv_heads * contract.head_dim * 2
    assert [planned(slots=slots).by_kind["kv cache"] for slots in (1, 3)] == [
        slots * 512 * token_bytes for slots in (1, 3)
    ]
    assert planned(tiles_per_run=1).total_bytes == planned(tiles_per_run=40).total_bytes
    assert planned(prefill_chunk=64).total_bytes == planned(prefill_chunk=32).total_bytes
    assert planned(context_tokens=1024).by_kind["kv cache"] == 1024 * token_bytes


def test_an_engine_s_cache_has_two_bytes_an_element_whatever_the_export_s_has(engines):
    wide = engines.model_copy(update={"decoder": engines.decoder.model_copy(update={"dtype": "float32"})})
    widths = [model_of(wide, target).kv_bytes_per_token for target in ("cuda", "tensorrt")]
    assert widths[0] == 2 * widths[1]


def test_what_a_gpu_has_not_free_is_refused_with_every_part_before_it_is_loaded(two_billion):
    plan = plan_memory(two_billion, replace(LOAD, slots=8), target="cuda", server=False)
    needed = sum(plan.on_device.values())
    assert needed == plan.total_bytes - 512 * MIB  # the context of the process that asks is there
    check_device(plan, HostDriver(free_bytes=needed))
    with pytest.raises(OptionError) as refused:
        check_device(plan, HostDriver(free_bytes=needed - 1))
    for words in ("of GPU memory are needed (weights ", "kv cache 6.00 GiB", "activations ", "lower slots"):
        assert words in str(refused.value)


@pytest.mark.parametrize(
    ("provider", "builder"), [("cuda", None), ("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt-rtx")]
)
def test_an_engine_that_cannot_be_on_its_gpu_opens_no_session(
    exported, tmp_path, monkeypatch, provider, builder
):
    artifacts = exported("internvl2-tiny")
    if builder:
        artifacts = with_engines(artifacts, tmp_path / "artifacts", targets=("sm_89",), builder=builder)
    monkeypatch.setattr("vitrail.plan.check.LibCuda", lambda _: HostDriver(free_bytes=64 * MIB))
    for opened in ("open_decoder", "open_vision"):
        monkeypatch.setattr(f"vitrail.engine.{opened}", None)
    with pytest.raises(
        OptionError, match=r"GPU memory are needed \(weights .* 64\.00 MiB of 64\.00 MiB are free"
    ):
        Engine.load(artifacts, provider=provider)


def test_a_server_that_cannot_be_on_its_gpu_is_not_started_and_keeps_no_context(exported, monkeypatch):
    left = []
    driver = HostDriver(free_bytes=64 * MIB)
    monkeypatch.setattr(driver, "leave", lambda: left.append(True), raising=False)
    monkeypatch.setattr("vitrail.plan.check.LibCuda", lambda _: driver)
    settings = ServingSettings(target="cuda", provider=parse_provider("cuda"))
    server = Server(exported("internvl2-tiny"), settings=settings)
    with pytest.raises(OptionError, match="GPU memory are needed"):
        server.start()
    assert (server.pid, left) == (None, [True])


def test_weights_and_cache_are_counted_exactly(two_billion):
    plan = plan_memory(two_billion, LOAD, target="tensorrt")
    cache = next(item for item in plan.items if item.kind == "kv cache")
    assert cache.size_bytes == 4096 * 2 * 24 * 8 * 128 * 4
    weights = {item.part: item.size_bytes for item in plan.items if item.kind == "weights"}
    assert weights["decoder"] == two_billion.weights_bytes["decoder"]


@pytest.mark.parametrize("target", TARGETS)
def test_more_of_anything_takes_more(two_billion, target):
    def total(**changed):
        return plan_memory(two_billion, replace(LOAD, **changed), target=target).total_bytes

    least = total()
    for changed in ({"slots": 2}, {"context_tokens": 8192}, {"prefill_chunk": 1024}):
        assert total(**changed) > least
    assert (total(tiles_per_run=13) > least) == (target != "cpu")


def test_a_jetson_counts_what_elsewhere_is_the_host_s(two_billion):
    jetson, server = (plan_memory(two_billion, LOAD, target=target) for target in ("jetson", "tensorrt"))
    assert jetson.total_bytes == jetson.host_bytes > server.total_bytes + server.host_bytes
    assert server.place == "device"


def test_kinds_add_up_to_the_total(two_billion):
    plan = plan_memory(two_billion, LOAD)
    assert tuple(plan.by_kind) == KINDS
    assert sum(plan.by_kind.values()) == plan.total_bytes == sum(item.size_bytes for item in plan.items)


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


def test_a_second_graph_and_an_int8_cache_are_counted():
    def planned(*options):
        return plan_of("internvl2-2b", "--precision", "int4", "--tiles-per-run", 4, *options)[1]["plans"][0]

    plain, both = planned("--prefill", "same"), planned("--prefill", "w8a8", "--kv-cache", "int8")
    second = sized(find_source("internvl2-2b"), ExportOptions(prefill="w8a8")).weights_bytes["prefill"]
    assert both["weights_bytes"] - plain["weights_bytes"] > second > 24 * 4 * 2048**2
    assert both["kv_cache_bytes"] * 4 == plain["kv_cache_bytes"]


def test_openvino_holds_more_weights_and_activations_of_more_tiles():
    source = find_source("internvl2-2b")
    half = ExportOptions(vision_precision="float16")
    here, there = (sized(source, half, openvino=on) for on in (False, True))
    assert (
        plan_memory(there, LOAD).by_kind["weights"] - plan_memory(here, LOAD).by_kind["weights"] > 256 * MIB
    )
    grown = [
        plan_memory(model, replace(LOAD, tiles_per_run=tiles)).by_kind["activations"]
        for model in (here, there)
        for tiles in (1, 13)
    ]
    assert grown[0] == grown[1]
    assert grown[2] < grown[3]


def test_a_cpu_gets_few_large_tiles_at_once_and_openvino_as_many_as_it_may(two_billion):
    vision = two_billion.vision
    assert [cpu_tiles_per_run(vision, 8, openvino=on) for on in (False, True)] == [1, 8]
    dynamic = vision.model_copy(update={"precision": "int8"})
    assert cpu_tiles_per_run(dynamic, 8, openvino=True) == 1
    small = vision.model_copy(update={"tokens_per_tile": 64, "feature_size": 1024})
    assert [cpu_tiles_per_run(small, most, openvino=False) for most in (8, 40)] == [8, 16]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--provider", "cuda"), "plan a GPU with --target"),
        (("--provider", "openvino", "--target", "jetson"), "is for --target cpu, and the target is jetson"),
        (("--prefill", "w8a8", "--target", "jetson"), "w8a8 is for CPUs"),
        (("--kv-cache", "int8", "--target", "jetson"), "int8 KV cache is for dialect ort"),
    ],
)
def test_forms_that_do_not_go_together_are_refused(options, words):
    result = CliRunner().invoke(app, ["plan", "internvl2-2b", "--memory", "8GiB", *options])
    assert (result.exit_code, words in result.stderr) == (2, True), result.stderr


def test_an_export_is_planned_as_it_is(exported):
    result = CliRunner().invoke(app, ["plan", str(exported("internvl2-tiny")), "--kv-cache", "int8"])
    assert result.exit_code == 2
    assert "leave out --kv-cache, or name its checkpoint" in result.stderr


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


def test_without_a_gpu_its_memory_is_to_be_given(exported, monkeypatch):
    def no_gpu(_device_id):
        raise OptionError("there is no NVIDIA driver here")

    monkeypatch.setattr("vitrail.session.cuda_driver.LibCuda", no_gpu)
    result = CliRunner().invoke(app, ["plan", str(exported("internvl2-tiny")), "--target", "cuda"])
    assert result.exit_code == 2
    assert "--memory is needed: there is no NVIDIA driver" in result.stderr


def test_what_is_no_model_is_told_what_may_be_given(tmp_path):
    with pytest.raises(CheckpointError, match="no export, no directory with"):
        find_source(str(tmp_path))
    result = CliRunner().invoke(app, ["plan", str(tmp_path)])
    assert result.exit_code == 3
    assert "internvl3-8b" in result.stderr


def test_what_cannot_fit_is_refused_with_figures_and_cure_before_it_is_loaded(exported, monkeypatch):
    artifacts = exported("internvl2-tiny")
    monkeypatch.setenv(OVERRIDE, "64MiB")
    with pytest.raises(OptionError, match=r"may take .*weights .*kv cache .* this machine has 64 MiB; "):
        Engine.load(artifacts)
    server = Server(artifacts, settings=ServingSettings())
    with pytest.raises(OptionError, match="VITRAIL_MEMORY=off loads it all the same"):
        server.start()
    monkeypatch.setenv(OVERRIDE, "off")
    Engine.load(artifacts).close()


def test_fewer_cached_tokens_are_the_cure_where_they_are_the_cause(two_billion):
    plan = plan_memory(two_billion, Load(slots=16, context_tokens=32768))
    with pytest.raises(OptionError, match=r"slots x context is 16 x 32768 tokens, \d+ in all fit: lower"):
        check_memory(plan, limit_bytes=16 * GIB)


@pytest.mark.parametrize(
    ("precision", "cure"), [("float16", "; export with --precision int4, lower"), ("int4", "; lower")]
)
def test_int4_is_no_cure_for_what_is_in_int4(two_billion, precision, cure):
    decoder = two_billion.decoder.model_copy(update={"precision": precision})
    plan = plan_memory(replace(two_billion, decoder=decoder), Load(slots=1, context_tokens=1024))
    with pytest.raises(OptionError, match=f"{cure} slots, tiles_per_run"):
        check_memory(plan, limit_bytes=64 * MIB)


def test_a_load_of_less_than_nothing_is_refused():
    for name, words in (("slots", "slots is -1; it must be"), ("feature_cache_bytes", "is -1; give 0")):
        with pytest.raises(OptionError, match=words):
            replace(LOAD, **{name: -1})


def test_a_plan_within_its_margin_is_a_warning_only(two_billion, caplog):
    plan = plan_memory(two_billion, LOAD)
    check_memory(plan, limit_bytes=plan.host_bytes)
    assert not caplog.messages
    check_memory(plan, limit_bytes=int(plan.host_bytes / 1.09))
    assert "may run out when every slot is full" in caplog.text
