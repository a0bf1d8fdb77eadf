"""Matrix products in int8: rows that do not depend on their neighbours, and a graph of their own for prompts."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.conftest import REFERENCE

from vitrail.errors import ArtifactError, OptionError
from vitrail.manifest import load_manifest
from vitrail.session import Step
from vitrail.session.ort import OrtDecoder
from vitrail_export.checkpoint import Checkpoint
from vitrail_export.exporter import export_checkpoint
from vitrail_export.options import ExportOptions
from vitrail_export.reference import Reference

TINY = REFERENCE / "internvl2-tiny"
QWEN = REFERENCE / "internvl3-tiny"


def prompt(length=40, seed=0, width=96):
    return np.random.default_rng(seed).normal(size=(length, width)).astype(np.float32)


def exported(directory, source=TINY, **options):
    export_checkpoint(source, directory, options=ExportOptions(**options))
    return directory


def session(directory):
    return OrtDecoder(directory, load_manifest(directory), slots=2, capacity=64)


def feed(decoder, embeds, *, slot=0, past=0, is_prompt=True):
    """Logits of every new position."""
    step = Step(slot, embeds[None], np.array([past], np.int32), np.arange(len(embeds)), is_prompt)
    return decoder.forward(step)


def cosine(a, b):
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def operators(graph):
    return {node.op_type for node in onnx.load(graph, load_external_data=False).graph.node}


@pytest.fixture(scope="module")
def w8a8(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("w8a8"), precision="w8a8")


@pytest.fixture(scope="module")
def int4(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("int4"), precision="int4")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("mixed"), precision="int4", prefill="w8a8")


@pytest.mark.parametrize(("source", "width"), [(TINY, 96), (QWEN, 112)], ids=["internlm2", "qwen2"])
def test_int8_products_stay_close_to_float32(source, width, tmp_path):
    embeds = prompt(width=width)
    exact = Reference(Checkpoint.open(source)).logits(embeds[None], positions=range(40))
    assert cosine(feed(session(exported(tmp_path, source, precision="w8a8")), embeds), exact) > 0.995


def test_a_prompt_reads_the_same_whole_and_in_pieces(w8a8):
    whole, pieces, embeds = session(w8a8), session(w8a8), prompt()
    logits = feed(whole, embeds)
    parts = [feed(pieces, embeds[a:b], past=a) for a, b in ((0, 17), (17, 18), (18, 40))]
    np.testing.assert_allclose(np.concatenate(parts), logits, atol=1e-4)


def test_a_row_of_huge_numbers_does_not_coarsen_its_neighbours(w8a8):
    embeds, loud = prompt(), prompt()
    loud[-1] *= 1000
    np.testing.assert_allclose(feed(session(w8a8), loud)[:-1], feed(session(w8a8), embeds)[:-1], atol=1e-4)


def test_a_row_of_zeros_is_no_division_by_zero(w8a8):
    assert np.isfinite(feed(session(w8a8), np.zeros((3, 96), np.float32))).all()


def test_what_is_sensitive_keeps_its_activations(w8a8, tmp_path):
    assert {"MatMulIntegerToFloat", "MatMulNBits"} <= operators(w8a8 / "decoder.onnx")
    everywhere = exported(tmp_path, precision="w8a8", sensitive=())
    assert "MatMulNBits" not in operators(everywhere / "decoder.onnx")


def test_prompts_are_read_by_a_graph_of_their_own(mixed, int4, w8a8):
    one, embeds = session(mixed), prompt()
    np.testing.assert_array_equal(feed(one, embeds), feed(session(w8a8), embeds))
    drawn = prompt(1, seed=7)
    own = session(int4)
    for mine, its in zip(own.caches.values(), one.caches.values(), strict=True):
        mine[:] = its
    np.testing.assert_array_equal(
        feed(one, drawn, past=40, is_prompt=False), feed(own, drawn, past=40, is_prompt=False)
    )
    assert not one.reads_as_written
    assert own.reads_as_written


def weights(graph):
    return {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(graph).graph.initializer}


def test_both_graphs_share_the_steps_of_an_int8_cache(tmp_path):
    options = {"cache": "int8", "calibration": REFERENCE / "images"}
    found = exported(tmp_path, precision="int4", prefill="w8a8", **options)
    drawn, read = (weights(found / name) for name in ("decoder.onnx", "prefill.onnx"))
    steps = [name for name in drawn if name.endswith("_step")]
    assert len(steps) == 2 * 3
    for name in steps:
        np.testing.assert_array_equal(read[name], drawn[name])


def test_fitted_weights_read_prompts_as_they_would_draw_tokens(tmp_path, monkeypatch):
    """Those that read are fitted on their own: the same as where all products are in int8."""
    monkeypatch.setattr("vitrail_export.exporter.calibration_prompts", lambda *_: [prompt(30, 1)])
    fitted = {"quantizer": "gptq", "calibration": REFERENCE / "images"}
    both = exported(tmp_path / "both", precision="int4", prefill="w8a8", **fitted)
    one = exported(tmp_path / "one", precision="w8a8", **fitted)
    read, drawn = weights(both / "prefill.onnx"), weights(one / "decoder.onnx")
    rounded = weights(exported(tmp_path / "rounded", precision="w8a8") / "decoder.onnx")
    codes = [name for name, each in drawn.items() if each.dtype == np.int8 and ".layers." in name]
    assert len(codes) >= 3
    for name in codes:
        np.testing.assert_array_equal(read[name], drawn[name])
    assert any((rounded[name] != drawn[name]).any() for name in codes)


@pytest.mark.parametrize("source", [TINY, QWEN], ids=lambda path: path.name)
def test_prompts_over_an_int8_cache_are_read_as_drawn_tokens_are(source, tmp_path):
    """Whole and in pieces, and close to what the graph for drawn tokens makes of the same prompt."""
    options = {"cache": "int8", "calibration": REFERENCE / "images", "precision": "int8", "prefill": "w8a8"}
    directory = exported(tmp_path, source, **options)
    width = load_manifest(directory).decoder.hidden_size
    whole, pieces, drawn, embeds = (
        session(directory),
        session(directory),
        session(directory),
        prompt(width=width),
    )
    logits = feed(whole, embeds, slot=1)
    parts = [feed(pieces, embeds[a:b], slot=1, past=a) for a, b in ((0, 17), (17, 18), (18, 40))]
    np.testing.assert_allclose(np.concatenate(parts), logits, atol=2e-2)
    assert cosine(feed(drawn, embeds, slot=1, is_prompt=False), logits) > 0.99
    for name, cache in whole.caches.items():
        near = np.abs(cache[1, :, :40].astype(int) - drawn.caches[name][1, :, :40])
        assert cache[1, :, :40].any()
        # Of codes around 16: the weights of the two graphs differ.
        assert near.mean() < 3
        assert not cache[0].any()
        assert not cache[1, :, 40:].any()


def test_a_manifest_tells_of_the_graph_for_prompts(mixed, w8a8):
    manifest = load_manifest(mixed)
    assert (manifest.decoder.precision, manifest.decoder.prefill) == ("int4", "w8a8")
    assert manifest.artifacts["prefill"].path == "prefill.onnx"
    assert load_manifest(w8a8).decoder.graphs == ("decoder",)


def test_a_manifest_that_promises_a_graph_for_prompts_and_names_none_is_refused(mixed, tmp_path):
    damaged = Path(shutil.copytree(mixed, tmp_path / "damaged"))
    manifest = load_manifest(damaged)
    left = {name: artifact for name, artifact in manifest.artifacts.items() if name != "prefill"}
    manifest.model_copy(update={"artifacts": left}).write(damaged)
    with pytest.raises(ArtifactError, match="names no artifact 'prefill'; export again"):
        load_manifest(damaged)


def test_w8a8_throughout_needs_no_second_graph(tmp_path):
    found = exported(tmp_path, precision="w8a8", prefill="w8a8")
    assert load_manifest(found).decoder.prefill == "same"
    assert not (found / "prefill.onnx").exists()


def test_w8a8_over_an_int8_cache_may_have_one_since_that_reads_the_cache_in_float():
    options = ExportOptions(precision="w8a8", prefill="w8a8", cache="int8", calibration=REFERENCE / "images")
    assert options.prefill_form is not None
    assert replace(options, prefill="same").prefill_form is None


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "w8a8", "dialect": "standard"},
        {"precision": "w8a8", "activations": "float16"},
        {"precision": "float16", "prefill": "w8a8"},
        {"precision": "int4", "prefill": "w8a8", "dialect": "standard"},
    ],
)
def test_int8_products_are_refused_where_nothing_runs_them(options):
    with pytest.raises(OptionError, match="w8a8 is for CPUs"):
        ExportOptions(**options)
