"""What a model takes, part by part, told before it is loaded."""

from dataclasses import replace

import pytest
from tests.conftest import REFERENCE
from tests.runtime.plan.planning import LOAD, plan_of

from vitrail.errors import OptionError
from vitrail.manifest import load_manifest
from vitrail.plan.memory import KINDS, plan_memory
from vitrail.plan.model import TARGETS, intermediate_size, model_of
from vitrail.plan.size import GIB, MIB, parse_size, show_size
from vitrail.runs import cpu_tiles_per_look, cpu_tiles_per_run
from vitrail_export.forms import Wanted, forms
from vitrail_export.options import ExportOptions
from vitrail_export.sizes import find_source, sized


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


def test_a_large_tile_is_handed_on_alone_small_ones_together(two_billion):
    vision = two_billion.vision
    assert [cpu_tiles_per_look(vision, 8, openvino=on) for on in (False, True)] == [1, 8]
    small = vision.model_copy(update={"tokens_per_tile": 64, "feature_size": 1024})
    assert [cpu_tiles_per_look(small, 8, openvino=on) for on in (False, True)] == [16, 16]


def test_a_server_s_large_pictures_are_not_on_their_way_as_a_whole(two_billion):
    items = plan_memory(replace(two_billion, tiles_per_picture=13), LOAD).items
    (moved,) = (item.size_bytes for item in items if item.part == "on their way")
    assert moved < 13 * 4 * two_billion.vision.tokens_per_tile * two_billion.vision.feature_size


def test_a_load_of_less_than_nothing_is_refused():
    for name, words in (("slots", "slots is -1; it must be"), ("feature_cache_bytes", "is -1; give 0")):
        with pytest.raises(OptionError, match=words):
            replace(LOAD, **{name: -1})
