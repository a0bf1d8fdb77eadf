"""What int4 costs, part by part: the language model with one part rounded and the rest in float32, on real prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.nn import functional

from vitrail_export.checkpoint import Checkpoint
from vitrail_export.graph import Bits
from vitrail_export.names import HEAD
from vitrail_export.quantize import block_size, restore, round_rows
from vitrail_export.reference import Reference
from vitrail_export.weights import Float32

Tensor: TypeAlias = Any

POSITIONS = 64
"""Of each prompt's end, where its question and answer stand."""
PARTS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True, slots=True)
class Cost:
    """What rounding a part does: its weights, the mean Kullback-Leibler divergence of the next token from the float32
    model's (nats), and how often another token becomes the most likely one.
    """

    part: str
    weights: int
    divergence: float
    changed: float


def sensitivity(
    checkpoint: Checkpoint,
    prompts: Sequence[Float32],
    *,
    bits: Bits = 4,
    report: Callable[[str], None] = lambda _part: None,
) -> tuple[Cost, ...]:
    """The cost of each kind of matrix over all layers, of each layer, and of the output head; dearest first.

    prompts [P, hidden_size]. One pass of the whole model for each part: report(part) is called before.
    """
    exact = [_log_probabilities(Reference(checkpoint), prompt) for prompt in prompts]
    found = []
    for part, names in parts(checkpoint):
        report(part)
        model = PartlyRounded(checkpoint, names, bits)
        pairs = [(_log_probabilities(model, prompt), own) for prompt, own in zip(prompts, exact, strict=True)]
        weights = sum(int(np.prod(checkpoint.shape(name))) for name in names)
        found.append(Cost(part, weights, *_difference(pairs)))
    return tuple(sorted(found, key=lambda cost: -cost.divergence))


def parts(checkpoint: Checkpoint) -> Iterator[tuple[str, frozenset[str]]]:
    """Name -> the weights that it means."""
    layers = range(checkpoint.config.text.layers)
    matrices = {
        part: [name for name in checkpoint.names() if name.endswith(f".{part}.weight")] for part in PARTS
    }
    text = {part: [name for name in names if name.startswith("text.")] for part, names in matrices.items()}
    for part, names in text.items():
        yield part, frozenset(names)
    for layer in layers:
        at = f"text.layers.{layer}."
        yield f"layer {layer}", frozenset(n for names in text.values() for n in names if n.startswith(at))
    yield "lm_head", frozenset([HEAD])


@dataclass(frozen=True, slots=True)
class PartlyRounded(Reference):
    """The reference with these weights rounded."""

    rounded: frozenset[str]
    bits: Bits

    def _linear(self, name: str, x: Tensor) -> Tensor:
        bias = f"{name}.bias"
        matrix = self._rounded(f"{name}.weight", self.checkpoint.load(f"{name}.weight"))
        return functional.linear(x, matrix, self._weight(bias) if bias in self.checkpoint.names() else None)

    def _head_rows(self, start: int, stop: int) -> Tensor:
        return self._rounded(HEAD, self.checkpoint.load_rows(HEAD, start, stop))

    def _rounded(self, name: str, matrix: Float32) -> Tensor:
        if name not in self.rounded:
            return torch.from_numpy(matrix)
        block = block_size(matrix.shape[1], name)
        return torch.from_numpy(restore(round_rows(matrix, bits=self.bits, block=block), bits=self.bits))


def _log_probabilities(model: Reference, prompt: Float32) -> Float32:
    logits = model.logits(prompt[None], positions=range(max(0, len(prompt) - POSITIONS), len(prompt)))
    return functional.log_softmax(torch.from_numpy(logits), dim=-1).numpy()  # type: ignore[no-any-return]


def _difference(pairs: Sequence[tuple[Float32, Float32]]) -> tuple[float, float]:
    divergence = [(np.exp(own) * (own - other)).sum(-1) for other, own in pairs]
    changed = [own.argmax(-1) != other.argmax(-1) for other, own in pairs]
    return float(np.concatenate(divergence).mean()), float(np.concatenate(changed).mean())
