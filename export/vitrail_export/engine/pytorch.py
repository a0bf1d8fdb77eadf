"""bfloat16 in the PyTorch reference beside the same in float32: its own kernels, where ONNX Runtime has none on a CPU.

It is the checkpoint that is tried, by another implementation than the graph. That one is emulated beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from vitrail.manifest import Parity, Stage
from vitrail_export.checkpoint import Checkpoint
from vitrail_export.engine.cases import Case
from vitrail_export.engine.gate import FLOORS, compare
from vitrail_export.graph import Array
from vitrail_export.reference import Bfloat16, Reference
from vitrail_export.verify import TEXT_TOKENS

Tensor: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Changed(Reference):
    """The reference with these weights in the place of its own, by name."""

    weights: Mapping[str, Array] = field(default_factory=dict)

    def _weight(self, name: str) -> Tensor:
        return self._given(self.weights[name]) if name in self.weights else super(Changed, self)._weight(name)


class ChangedBfloat16(Changed, Bfloat16):
    """The same in bfloat16."""

    __slots__ = ()


def check_in_pytorch(checkpoint: Checkpoint, stage: Stage, cases: list[Case]) -> Parity:
    """Raises ExportError naming the case in which bfloat16 is not finite or not close to float32."""
    expected, found = ([run(kind, checkpoint, each) for each in cases] for kind in (Changed, ChangedBfloat16))
    return compare(stage, "bf16", cases, found, expected, judge="pytorch", floor=FLOORS["bf16"])


def run(kind: type[Changed], checkpoint: Checkpoint, case: Case) -> Array:
    """A case's output, float32."""
    given = dict(case.feeds)
    if "tiles" in given:
        tiles = given.pop("tiles")
        return kind(checkpoint, given).features(tiles)
    if "features" in given:
        return kind(checkpoint).embeds(given["features"])
    prompt = given["prompt"]
    last = range(len(prompt) - TEXT_TOKENS, len(prompt))
    return kind(checkpoint).logits(prompt[None], positions=last)
