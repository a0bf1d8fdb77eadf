"""Before an engine is built in bfloat16, PyTorch computes in it beside the emulation, where it can."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import REFERENCE

from vitrail.errors import ExportError
from vitrail.manifest import load_manifest
from vitrail_export.checkpoint import Checkpoint
from vitrail_export.engine import build
from vitrail_export.engine.cases import Case, outliers
from vitrail_export.engine.gate import FLOORS, UNJUDGED_FLOOR, compare
from vitrail_export.engine.options import EngineOptions
from vitrail_export.engine.pytorch import Changed, ChangedBfloat16, check_in_pytorch, run
from vitrail_export.reference import Bfloat16, Reference
from vitrail_export.verify import parity, sample_tiles

TINY = REFERENCE / "internvl2-tiny"
STANDARD = {"precision": "float16", "vision_precision": "float16", "dialect": "standard"}


@pytest.fixture
def without_compiling(monkeypatch):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    monkeypatch.setattr(
        build, "compile_graph", lambda _builder, _graph, engine, **_: engine.write_bytes(b"x")
    )


@pytest.fixture
def artifacts(exported, tmp_path):
    return Path(shutil.copytree(exported("internvl2-tiny", **STANDARD), tmp_path / "artifacts"))


def engines(directory, **options):
    """(stage -> record, stage and what happened to it)"""
    said = []
    records = build.build_engines(
        directory,
        EngineOptions(targets=("sm_89",), decoder=True, context_tokens=512, **options),
        report=lambda stage, what, _done: said.append((stage, what)),
    )
    # A manifest holds them in the order in which they were made.
    held = {each.stage: each for each in load_manifest(directory).engines}
    assert held == {each.stage: each for each in records}
    return {each.stage: each for each in records}, said


def judges(found):
    return {each.judge for stage, each in found.items() if stage != "sampler"}


def test_pytorch_judges_every_stage_where_it_and_the_checkpoint_are_there(without_compiling, artifacts):
    found, said = engines(artifacts, precision="bf16", checkpoint=TINY)
    assert found.pop("sampler").judge == "onnxruntime"
    assert judges(found) == {"pytorch"}
    assert all(0.999 <= each.parity.cosine < 1 for each in found.values())
    assert [stage for stage, what in said if "in PyTorch" in what] == list(found)


def test_without_pytorch_or_checkpoint_the_emulation_judges_until_they_are_there(
    without_compiling, artifacts, monkeypatch
):
    alone, _ = engines(artifacts, precision="bf16")
    with monkeypatch.context() as missing:
        missing.setattr(build, "find_spec", lambda _name: None)
        _, said = engines(artifacts, precision="bf16", checkpoint=TINY)
    assert judges(alone) == {"emulation"}
    assert {what for _, what in said} == {"up to date"}
    again, _ = engines(artifacts, precision="bf16", checkpoint=TINY)
    assert judges(again) == {"pytorch"}
    _, said = engines(artifacts, precision="bf16")
    assert {what for _, what in said} == {"up to date"}


def test_other_precisions_are_judged_by_onnxruntime(without_compiling, artifacts):
    found, _ = engines(artifacts, checkpoint=TINY)
    assert judges(found) == {"onnxruntime"}


def test_the_reference_in_bfloat16_is_near_itself_in_float32_and_not_equal(exported):
    tiles = sample_tiles(load_manifest(exported("internvl2-tiny")))
    exact, half = (kind(Checkpoint.open(TINY)).features(tiles) for kind in (Reference, Bfloat16))
    assert half.dtype == np.float32
    assert 0.999 < parity("", half, exact).cosine < 0.999999


def test_extreme_position_embeddings_reach_the_reference(exported):
    checkpoint, tiles = Checkpoint.open(TINY), sample_tiles(load_manifest(exported("internvl2-tiny")))
    extreme, channels = outliers(checkpoint.load("vision.position_embedding"))
    feeds = {"tiles": tiles, "vision.position_embedding": extreme}
    plain, changed = (run(Changed, checkpoint, Case("", each)) for each in ({"tiles": tiles}, feeds))
    width = extreme.shape[-1]
    assert np.abs(changed - plain)[..., [each + width for each in channels]].min() > 1000
    case = Case("extreme activations", feeds, ignored=channels, period=width)
    assert check_in_pytorch(checkpoint, "vision_encoder", [case]).cosine > 0.999
    assert not np.array_equal(run(ChangedBfloat16, checkpoint, case), changed)


def test_activations_that_differ_by_less_than_bfloat16_tells_apart_are_refused():
    """float32 takes the mean of 8192 out again; bfloat16 has rounded all that differs to steps of 64 by then."""
    checkpoint = Checkpoint.open(TINY)
    shape = (1, 256, checkpoint.config.feature_size)
    shifted = np.random.default_rng(0).normal(8192, 1, shape).astype(np.float32)
    words = "projector in bf16 in PyTorch, given shifted features, has cosine .*build with --precision fp16"
    with pytest.raises(ExportError, match=words):
        check_in_pytorch(checkpoint, "projector", [Case("shifted features", {"features": shifted})])


def test_the_emulation_s_refusal_of_photographs_is_pytorch_s_to_lift():
    """A cosine between the two floors: refused by the emulation alone, with the way to PyTorch; else a mistake is looked for."""
    rng = np.random.default_rng(0)
    exact = rng.normal(size=(1, 256, 64)).astype(np.float32)
    found = exact + rng.normal(scale=0.05, size=exact.shape).astype(np.float32)
    assert 0.99 < parity("", found, exact).cosine < 0.999
    pair = ([Case("a photograph", {}, real=True)], [found], [exact])
    with pytest.raises(
        ExportError, match=r"in bf16 in emulation, given a photograph, .*--checkpoint .*PyTorch"
    ):
        compare("vision_encoder", "bf16", *pair, judge="emulation", floor=FLOORS["bf16"])
    assert compare("vision_encoder", "bf16", *pair, judge="emulation", floor=UNJUDGED_FLOOR).cosine > 0.99


def test_artificial_pictures_must_be_finite_in_bfloat16_and_no_more():
    exact = np.random.default_rng(0).normal(size=(1, 4, 64)).astype(np.float32)
    cases = [Case("a photograph", {}), Case("noise", {}, artificial=True)]
    found = compare(
        "vision_encoder", "bf16", cases, [exact, -exact], [exact] * 2, judge="pytorch", floor=0.999
    )
    assert found.cosine == pytest.approx(1)
    with pytest.raises(ExportError, match=r"given noise: 256 of 256 outputs are not finite"):
        compare(
            "vision_encoder",
            "bf16",
            cases,
            [exact, exact * np.nan],
            [exact] * 2,
            judge="pytorch",
            floor=0.999,
        )
