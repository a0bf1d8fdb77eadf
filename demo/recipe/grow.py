"""A deeper language model that computes what a shallower one did: new layers before the counting one add nothing yet."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from demo.recipe.loop import Stage
from demo.recipe.model import AFTER_COUNTING, Shape
from demo.recipe.state import load, parts_of, save

LAYERS = "language_model.model.layers."
SILENT = ("attention.wo.weight", "feed_forward.w2.weight")


def grow(stage: Stage, path: Path) -> None:
    """Rewrite `path` with as many layers as the stage's model has; momenta begin again. Nothing where there is no state, or it has them."""
    before = load(path)
    if not before:
        return
    old, new = layers_of(before["model"]), Shape().text_layers
    if old == new:
        return
    grown = {name: each for name, each in before["model"].items() if not name.startswith(LAYERS)}
    for name, fresh in stage.model.state_dict().items():
        if name.startswith(LAYERS):
            grown[name] = _weight(name, fresh, before["model"], old=old, new=new)
    stage.model.load_state_dict(grown)
    save(path, step=before["step"], samples=before["samples"], **parts_of(stage.model, stage.optimizers))


def layers_of(weights: dict[str, Tensor]) -> int:
    return 1 + max(int(name[len(LAYERS) :].split(".")[0]) for name in weights if name.startswith(LAYERS))


def _weight(name: str, fresh: Tensor, weights: dict[str, Tensor], *, old: int, new: int) -> Tensor:
    number, part = name[len(LAYERS) :].split(".", 1)
    at, kept_before = int(number), old - AFTER_COUNTING
    if at < kept_before:
        return weights[name]
    if at >= new - AFTER_COUNTING:
        return weights[f"{LAYERS}{at - new + old}.{part}"]
    return torch.zeros_like(fresh) if part in SILENT else fresh
