"""Plans of exports that have TensorRT engines."""

import shutil
from dataclasses import replace

import pytest
from tests.repository.engines import with_engines
from tests.runtime.engine_fakes import with_engines as with_decoder
from tests.runtime.plan.planning import LOAD, plan_of
from typer.testing import CliRunner

from vitrail.cli import app
from vitrail.manifest import load_manifest
from vitrail.plan.memory import plan_memory
from vitrail.plan.model import model_of


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
