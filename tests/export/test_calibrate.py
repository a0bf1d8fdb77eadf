"""Exports that are fitted to pictures: what they gain, and what they refuse."""

import numpy as np
import pytest
from tests.conftest import REFERENCE

from vitrail.errors import ExportError, OptionError
from vitrail.manifest import load_manifest
from vitrail.session import Step
from vitrail.session.ort import OrtDecoder
from vitrail_export.calibrate import Calibrated, LayerByLayer
from vitrail_export.checkpoint import Checkpoint
from vitrail_export.exporter import export_checkpoint
from vitrail_export.graph import Form
from vitrail_export.graph import ir as graph_ir
from vitrail_export.options import ExportOptions, read_sensitive
from vitrail_export.pictures import find_pictures
from vitrail_export.reference import Reference

TINY = REFERENCE / "internvl2-tiny"
PICTURES = REFERENCE / "images"


def prompt(length=40, seed=0):
    return np.random.default_rng(seed).normal(size=(length, 96)).astype(np.float32)


def fitted(**options):
    form = Form("ort", graph_ir.DataType.FLOAT, bits=4, **options)
    prompts = [prompt(60, 1), prompt(50, 2), prompt(70, 3)]
    return LayerByLayer.begin(Checkpoint.open(TINY), prompts, form=form, gptq=True, int8_cache=True)


@pytest.fixture(scope="module")
def one_picture(tmp_path_factory):
    pictures = tmp_path_factory.mktemp("pictures")
    (pictures / "rocket.jpg").write_bytes((PICTURES / "rocket.jpg").read_bytes())
    (pictures / "rocket.txt").write_text("What is this?\nA rocket, at night.")
    return pictures


@pytest.fixture(scope="module")
def calibrated(one_picture, tmp_path_factory):
    """internvl2-tiny in int4 with everything that can be fitted."""
    out = tmp_path_factory.mktemp("calibrated")
    options = ExportOptions(
        quantizer="gptq", calibration=one_picture, cache="int8", sensitive=("lm_head", "v", "last")
    )
    export_checkpoint(TINY, out, options=options)
    return out


def session(directory, **options):
    return OrtDecoder(directory, load_manifest(directory), slots=2, capacity=64, **options)


def feed(decoder, embeds, *, slot=0, past=0):
    wanted = np.array([len(embeds) - 1], np.int64)
    return decoder.forward(Step(slot, embeds[None], np.array([past], np.int32), wanted))


def cosine(a, b):
    a, b = np.ravel(a).astype(np.float64), np.ravel(b).astype(np.float64)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_an_int8_cache_and_fitted_int8_weights_answer_as_the_reference_does(one_picture, tmp_path):
    options = ExportOptions(precision="int8", quantizer="gptq", calibration=one_picture, cache="int8")
    export_checkpoint(TINY, tmp_path, options=options)
    checkpoint = Checkpoint.open(TINY)
    embeds = Reference(checkpoint).token_embeds(list(range(100, 130)))
    expected = Reference(checkpoint).logits(embeds[None], positions=[29])
    assert cosine(feed(session(tmp_path), embeds), expected) > 0.985


def test_what_is_sensitive_is_int8_and_computes_the_same_layers(exported):
    every = exported("internvl2-tiny", precision="int4", sensitive=("lm_head", "first", "last", "v", "down"))
    checkpoint = Checkpoint.open(TINY)
    embeds = Reference(checkpoint).token_embeds(list(range(100, 130)))
    expected = Reference(checkpoint).logits(embeds[None], positions=[29])
    near = cosine(feed(session(every), embeds), expected)
    far = cosine(feed(session(exported("internvl2-tiny", precision="int4")), embeds), expected)
    assert near > 0.5 * (1 + far)


def test_the_manifest_tells_how_it_was_made_and_what_a_token_costs(calibrated):
    contract = load_manifest(calibrated).decoder
    assert (contract.quantizer, contract.cache, contract.embeddings) == ("gptq", "int8", "int8")
    assert contract.sensitive == ("lm_head", "v", "last")
    assert contract.kv_bytes_per_token == 2 * contract.layers * contract.kv_heads * contract.head_dim


def test_an_int8_cache_is_bytes_and_its_copied_prefix_answers_alike(calibrated):
    decoder, embeds = session(calibrated), prompt(30) * 0.02
    feed(decoder, embeds[:20])
    decoder.copy(0, 1, 20)
    assert {cache.dtype for cache in decoder.caches.values()} == {np.dtype(np.int8)}
    np.testing.assert_array_equal(
        feed(decoder, embeds[20:], slot=1, past=20), feed(decoder, embeds[20:], slot=0, past=20)
    )


def test_a_prompt_in_chunks_into_an_int8_cache_stays_near_one_pass(calibrated):
    decoder, embeds = session(calibrated), prompt(30) * 0.02
    whole = feed(decoder, embeds)
    feed(decoder, embeds[:17])
    assert cosine(feed(decoder, embeds[17:], past=17), whole) > 0.999


def test_siblings_and_layers_are_fitted_in_the_order_of_the_export():
    made = Calibrated(fitted())
    (_, first), *_ = made.rows(made.layers.checkpoint, "text.layers.0.attn.q.weight", bits=4, block=32)
    assert first.codes.shape == (96, 3, 32)
    assert len(made.cache_scales("text.layers.1.attn.key")) == 2 * 16
    with pytest.raises(ExportError, match=r"layers\.0\.attn\.q.*after a later layer"):
        list(made.rows(made.layers.checkpoint, "text.layers.0.attn.q.weight", bits=4, block=32))


def test_prompts_do_not_see_each_other():
    together = fitted()
    alone = LayerByLayer.begin(
        together.checkpoint, [prompt(60, 1)], form=Form("ort", graph_ir.DataType.FLOAT), gptq=False
    )
    apart = LayerByLayer.begin(
        together.checkpoint,
        [prompt(50, 2), prompt(60, 1)],
        form=Form("ort", graph_ir.DataType.FLOAT),
        gptq=False,
    )
    alone.run_layer()
    apart.run_layer()
    np.testing.assert_allclose(apart.walk.x[50:], alone.walk.x, atol=1e-5)


def test_a_directory_without_pictures_is_refused(tmp_path):
    with pytest.raises(OptionError, match=r"has no picture \(\.png, \.jpg"):
        find_pictures(tmp_path)
    with pytest.raises(OptionError, match="is no directory"):
        find_pictures(tmp_path / "none")


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    options = ExportOptions(quantizer="gptq", calibration=tmp_path)
    with pytest.raises(OptionError, match=r"calibration picture cannot be read: .*broken\.png.*remove it"):
        export_checkpoint(TINY, tmp_path / "out", options=options)


def test_sensitive_parts_are_read_by_name():
    assert read_sensitive("lm_head, down") == ("lm_head", "down")
    assert read_sensitive("none") == ()
    with pytest.raises(OptionError, match="'up' is unknown; choose lm_head, first, last, v, down"):
        read_sensitive("v,up")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantizer": "gptq"}, r"gptq is fitted to pictures; name a directory of them with --calibration"),
        ({"cache": "int8"}, "an int8 KV cache is fitted to pictures"),
        ({"quantizer": "gptq", "precision": "float16"}, "gptq is for int8, w8a8 and int4, not float16"),
        ({"cache": "int8", "dialect": "standard"}, "int8 KV cache is for dialect ort"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        ExportOptions(**options)
