"""Weights and caches of the language model fitted to what it computes on calibration prompts, one layer at a time.

The prompts run through the float32 reference as the export asks for one layer after the other: each matrix is quantized
by the inputs that reach it through all that is quantized before, and its outputs go on. Memory: one layer's weights,
its inputs' second moments and the prompts' activations, whatever the model's depth.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.nn import functional

from vitrail.errors import ExportError
from vitrail_export.checkpoint import Checkpoint
from vitrail_export.config import TextConfig
from vitrail_export.gptq import Moments, moments, round_with_moments
from vitrail_export.graph import Array, Bits, Codes, Form, WeightSource
from vitrail_export.names import EMBEDDING
from vitrail_export.quantize import Rounding, block_size, restore, round_rows
from vitrail_export.reference import Reference, attention, rotate, rotations
from vitrail_export.weights import Float32, blocks_of_rows

Tensor: TypeAlias = Any

_LAYER = re.compile(r"text\.layers\.(\d+)\.(?:attn|mlp)\.(\w+)")
INT8_LIMIT = 127
HEADROOM = 2
"""How far cached values may go beyond those of the calibration prompts before they are cut off."""
SMALLEST = 1e-6
"""What the largest value of a channel of zeros is taken for."""
VOCABULARY_BLOCK_BYTES = 64 << 20


def calibrate(
    checkpoint: Checkpoint, prompts: Sequence[Float32], *, form: Form, gptq: bool, int8_cache: bool = False
) -> Calibrated:
    """A Quantizer and CacheScales fitted to prompts [P, hidden_size], the latter where there is to be an int8_cache to the
    whole vocabulary, too; without gptq weights are rounded.
    """
    return Calibrated(LayerByLayer.begin(checkpoint, prompts, form=form, gptq=gptq, int8_cache=int8_cache))


@dataclass(slots=True)
class Walk:
    """How far the prompts have come: x [sum of P, hidden_size] before layer `next`, the codes that the layer behind it gave,
    and the cache's steps of all layers so far.
    """

    x: Tensor
    next: int = 0
    codes: dict[str, Codes] = field(default_factory=dict)
    steps: dict[str, Array] = field(default_factory=dict)
    moments: tuple[Tensor, Moments] | None = None


@dataclass(frozen=True, slots=True)
class LayerByLayer(Reference):
    """The reference on calibration prompts of these `lengths` laid end to end, quantizing each layer that it passes."""

    form: Form
    gptq: bool
    int8_cache: bool
    lengths: tuple[int, ...]
    walk: Walk

    @classmethod
    def begin(
        cls,
        checkpoint: Checkpoint,
        prompts: Sequence[Float32],
        *,
        form: Form,
        gptq: bool,
        int8_cache: bool = False,
    ) -> LayerByLayer:
        walk = Walk(torch.from_numpy(np.concatenate(prompts)))
        return cls(checkpoint, form, gptq, int8_cache, tuple(map(len, prompts)), walk)

    def run_layer(self) -> None:
        walk = self.walk
        walk.codes = {}
        turns = rotations(max(self.lengths), self.checkpoint.config.text)
        cos, sin = (torch.cat([each[:length] for length in self.lengths]) for each in turns)
        with torch.inference_mode():
            walk.x = self._text_layer(f"text.layers.{walk.next}", walk.x, (cos, sin))
        walk.moments = None
        walk.next += 1

    def _linear(self, name: str, x: Tensor) -> Tensor:
        weight, bias = f"{name}.weight", f"{name}.bias"
        form, matrix = self._form(name), self._weight(weight)
        if form is not None and form.bits is not None:
            inputs = matrix.shape[1]
            block = inputs if form.int8 else block_size(inputs, name)
            if weight not in self.walk.codes:
                self.walk.codes[weight] = self._quantize(matrix, x, bits=form.bits, block=block)
            matrix = torch.from_numpy(restore(self.walk.codes[weight], bits=form.bits))
        return functional.linear(x, matrix, self._weight(bias) if bias in self.checkpoint.names() else None)

    def _form(self, name: str) -> Form | None:
        found = _LAYER.fullmatch(name)
        if found is None:
            return None
        return self.form.in_layer(int(found[1]), self.checkpoint.config.text.layers).of(found[2])

    def _quantize(self, matrix: Tensor, x: Tensor, *, bits: Bits, block: int) -> Codes:
        if not self.gptq:
            return round_rows(matrix.numpy(), bits=bits, block=block)
        codes, scales = round_with_moments(matrix, self._moments_of(x), bits=bits, block=block)
        return Codes(codes.numpy(), scales.numpy())

    def _moments_of(self, x: Tensor) -> Moments:
        """Siblings (q, k, v; gate, up) get the same inputs one after the other."""
        if self.walk.moments is None or self.walk.moments[0] is not x:
            self.walk.moments = (x, moments(x))
        return self.walk.moments[1]

    def _attend(self, at: str, q: Tensor, k: Tensor, v: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        if self.int8_cache:
            self._fit_steps(at, k, v)
        sequences = (each.split(self.lengths, dim=1) for each in (rotate(q, rope), rotate(k, rope), v))
        return torch.cat([attention(*one, causal=True) for one in zip(*sequences, strict=True)], dim=1)

    def _fit_steps(self, at: str, k: Tensor, v: Tensor) -> None:
        widest = [HEADROOM * each for each in self._widest(k, v)]
        if self.walk.next == 0:
            widest = [torch.maximum(*each) for each in zip(widest, self._widest_of_tokens(at), strict=True)]
        for name, each in zip(("key", "value"), widest, strict=True):
            self.walk.steps[f"{at}.{name}"] = (each.clamp(min=SMALLEST) / INT8_LIMIT).numpy().reshape(-1)

    def _widest(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Of keys before they are rotated, and of values, [kv_heads, head_dim]."""
        return rotated_reach(k, self.checkpoint.config.text), v.abs().amax(dim=1)

    def _widest_of_tokens(self, at: str) -> tuple[Tensor, Tensor]:
        """The same of the first layer and every token of the vocabulary, of which few stand in any prompt: what the first
        layer caches for a token is known. One that is cut off can turn an answer.
        """
        (vocabulary, width), source = self.checkpoint.shape(EMBEDDING), self.checkpoint
        found = []
        for start, stop in blocks_of_rows(vocabulary, 4 * width, block_bytes=VOCABULARY_BLOCK_BYTES):
            x = torch.from_numpy(source.load_rows(EMBEDDING, start, stop))
            normed = self._rms_norm(at.replace("attn", "input_norm"), x, source.config.text.eps)
            found.append(self._widest(*self._cached(at, normed)))
        keys, values = (torch.stack(each).amax(dim=0) for each in zip(*found, strict=True))
        return keys, values


def rotated_reach(k: Tensor, text: TextConfig) -> Tensor:
    """The largest that each channel of keys [kv_heads, P, d] becomes at any position of the context: [kv_heads, d].

    A pair of channels turns on a circle, fast ones all around, slow ones along an arc.
    """
    first, second = k.chunk(2, dim=-1)
    frequencies = 1 / text.rope_theta ** (torch.arange(0, text.head_dim, 2).float() / text.head_dim)
    begin, radius = torch.atan2(second, first), torch.hypot(first, second)
    end = begin + frequencies * (text.context_tokens - 1)
    quarter = torch.pi / 2
    reach = [_widest_cosine(begin - turn, end - turn) for turn in (0, quarter)]
    return torch.cat([(radius * each).amax(dim=1) for each in reach], dim=-1)


def _widest_cosine(begin: Tensor, end: Tensor) -> Tensor:
    """The largest |cos| of the angles from `begin` to `end`."""
    ends = torch.maximum(begin.cos().abs(), end.cos().abs())
    passes = torch.ceil(begin / torch.pi) * torch.pi <= end
    return torch.where(passes, torch.ones_like(ends), ends)


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The Quantizer and CacheScales of a walk through the layers, which follows the export: layers in order, each
    asked about until the next is. What is in no layer is rounded.
    """

    layers: LayerByLayer

    def rows(self, source: WeightSource, name: str, *, bits: Bits, block: int) -> Iterator[tuple[int, Codes]]:
        if _layer_of(name) is None:
            yield from Rounding().rows(source, name, bits=bits, block=block)
            return
        self._go_to(name)
        yield 0, self.layers.walk.codes[name]

    def cache_scales(self, name: str) -> Array:
        if name not in self.layers.walk.steps:
            self._go_to(name)
        return self.layers.walk.steps[name]

    def _go_to(self, name: str) -> None:
        layer = _layer_of(name)
        if layer is None or layer < self.layers.walk.next - 1:
            raise ExportError(f"'{name}' was asked for after a later layer; write the layers in order")
        while self.layers.walk.next <= layer:
            self.layers.run_layer()


def _layer_of(name: str) -> int | None:
    found = re.match(r"text\.layers\.(\d+)\.", name)
    return int(found[1]) if found else None
