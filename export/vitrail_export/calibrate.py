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
from vitrail_export.gptq import Moments, moments, round_with_moments
from vitrail_export.graph import Array, Bits, Codes, Form, WeightSource
from vitrail_export.quantize import Rounding, block_size, restore, round_rows
from vitrail_export.reference import Reference, attention, rotations
from vitrail_export.weights import Float32

Tensor: TypeAlias = Any

_LAYER = re.compile(r"text\.layers\.(\d+)\.(?:attn|mlp)\.(\w+)")
INT8_LIMIT = 127
HEADROOM = 2
"""How far cached values may go beyond those of the calibration prompts before they are cut off."""


def calibrate(checkpoint: Checkpoint, prompts: Sequence[Float32], *, form: Form, gptq: bool) -> Calibrated:
    """A Quantizer and CacheScales fitted to prompts [P, hidden_size]; without gptq weights are rounded."""
    return Calibrated(LayerByLayer.begin(checkpoint, prompts, form=form, gptq=gptq))


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
    lengths: tuple[int, ...]
    walk: Walk

    @classmethod
    def begin(
        cls, checkpoint: Checkpoint, prompts: Sequence[Float32], *, form: Form, gptq: bool
    ) -> LayerByLayer:
        walk = Walk(torch.from_numpy(np.concatenate(prompts)))
        return cls(checkpoint, form, gptq, tuple(map(len, prompts)), walk)

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

    def _attend(self, at: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for name, cached in (("key", k), ("value", v)):
            widest = cached.abs().amax(dim=1).clamp(min=1e-6)  # [kv_heads, head_dim]
            self.walk.steps[f"{at}.{name}"] = (HEADROOM * widest / INT8_LIMIT).numpy().reshape(-1)
        sequences = (each.split(self.lengths, dim=1) for each in (q, k, v))
        return torch.cat([attention(*one, causal=True) for one in zip(*sequences, strict=True)], dim=1)


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
