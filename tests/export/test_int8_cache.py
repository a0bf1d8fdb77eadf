"""The steps of an int8 KV cache: what they reach, and that a decoder loses by them what rounding loses, not more."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from tests.conftest import REFERENCE

from vitrail.manifest import load_manifest
from vitrail.session import Step
from vitrail.session.ort import OrtDecoder
from vitrail_export.calibrate import HEADROOM, LayerByLayer, rotated_reach
from vitrail_export.checkpoint import Checkpoint
from vitrail_export.exporter import export_checkpoint
from vitrail_export.graph import Form
from vitrail_export.names import EMBEDDING
from vitrail_export.options import ExportOptions
from vitrail_export.reference import Reference, attention, rotate, rotations

TINY = REFERENCE / "internvl2-tiny"


class Rounding(Reference):
    """The reference over a cache of int8 codes, rotated keys by a step for each channel, head by head."""

    __slots__ = ("steps",)

    def __init__(self, checkpoint, steps):
        object.__setattr__(self, "checkpoint", checkpoint)
        object.__setattr__(self, "steps", steps)

    def _attend(self, at, q, k, v, rope):
        k, v = self.rounded(rotate(k, rope), f"{at}.key_step"), self.rounded(v, f"{at}.value_step")
        return attention(rotate(q, rope), k, v, causal=True)

    def rounded(self, x, name):
        step = torch.from_numpy(self.steps[name].reshape(len(x), 1, -1))
        return (x / step).round().clamp(-128, 127) * step


class Noting(Reference):
    """The reference that keeps what its first layer caches."""

    __slots__ = ("cached",)

    def __init__(self, checkpoint):
        object.__setattr__(self, "checkpoint", checkpoint)
        object.__setattr__(self, "cached", [])

    def _attend(self, at, q, k, v, rope):
        self.cached.append((rotate(k, rope).numpy(), v.numpy()))
        return super()._attend(at, q, k, v, rope)


@pytest.fixture(scope="module", params=["internvl2-tiny", "internvl3-tiny"])
def over_int8(request, tmp_path_factory):
    """(checkpoint, decoder in float32 over an int8 cache, the steps of that)"""
    directory, source = tmp_path_factory.mktemp(request.param), REFERENCE / request.param
    options = ExportOptions(precision="float32", cache="int8", calibration=REFERENCE / "images")
    export_checkpoint(source, directory, options=options)
    decoder = OrtDecoder(directory, load_manifest(directory), slots=1, capacity=64)
    values = ir.load(directory / "decoder.onnx").graph.initializers.items()
    steps = {name: value.const_value.numpy().copy() for name, value in values if name.endswith("_step")}
    return Checkpoint.open(source), decoder, steps


def test_an_int8_cache_costs_what_rounding_keys_and_values_costs(over_int8):
    """Whatever else the kernel did (rounding queries, another order of steps) would show here."""
    checkpoint, decoder, steps = over_int8
    embeds = Reference(checkpoint).token_embeds(list(range(100, 130)))
    expected = Rounding(checkpoint, steps).logits(embeds[None], positions=[20, 29])
    decoder.forward(Step(0, embeds[None, :20], np.zeros(1, np.int32), np.array([19])))
    for at in range(20, 30):
        logits = decoder.forward(Step(0, embeds[None, at : at + 1], np.array([at], np.int32), np.array([0])))
        if at in (20, 29):
            # A value between two codes may fall to either: not to the last digit.
            np.testing.assert_allclose(logits[0], expected[(at - 20) // 9], atol=0.02 * expected.std())


def test_no_token_of_the_vocabulary_is_cut_off_in_the_first_layer():
    """Prompts of ever the same few tokens tell nothing of the others."""
    checkpoint, few = Checkpoint.open(TINY), [7, 8, 9]
    prompts = [Reference(checkpoint).token_embeds(few * 5)]
    form = Form("ort", ir.DataType.FLOAT)
    layers = LayerByLayer.begin(checkpoint, prompts, form=form, gptq=False, int8_cache=True)
    layers.run_layer()
    noting = Noting(checkpoint)
    embeds = noting.token_embeds(range(checkpoint.shape(EMBEDDING)[0]))
    noting.logits(embeds[None], positions=[0])
    for cached, name in zip(noting.cached[0], ("key", "value"), strict=True):
        widest = np.abs(cached).max(axis=1)
        assert (
            widest <= 127.01 * layers.walk.steps[f"text.layers.0.attn.{name}"].reshape(widest.shape)
        ).all()
        assert (widest > HEADROOM * np.abs(cached[:, few]).max(axis=1)).any()


def test_keys_are_bounded_at_every_position_of_the_context():
    text = replace(Checkpoint.open(TINY).config.text, context_tokens=600)
    keys = torch.from_numpy(np.random.default_rng(3).normal(size=(2, 5, text.head_dim)).astype(np.float32))
    rope, reach = rotations(600, text), rotated_reach(keys, text)
    turned = [rotate(keys[:, at : at + 1], rope).abs().amax(dim=1) for at in range(keys.shape[1])]
    found = torch.stack(turned).amax(dim=0)
    assert (found <= 1.01 * reach).all()
    assert (found > 0.95 * reach).all()


def test_a_pair_that_hardly_turns_is_not_bounded_by_its_other_half():
    text = Checkpoint.open(TINY).config.text
    keys = torch.zeros(1, 1, text.head_dim)
    keys[..., text.head_dim // 2 - 1], keys[..., -1] = 100.0, 1.0
    reach = rotated_reach(keys, replace(text, context_tokens=8))[0]
    assert reach[-1] < 10
    assert reach[text.head_dim // 2 - 1] == pytest.approx(100, rel=0.01)
