"""Muon for matrices and AdamW for the rest. Source of Muon: Keller Jordan, kellerjordan.github.io/posts/muon."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from demo.recipe import together

# Coefficients of the quintic Newton-Schulz iteration in that article.
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalized(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: singular values end between 0.7 and 1.2. bfloat16 suffices."""
    a, b, c = QUINTIC
    x = (matrix / (matrix.norm() + 1e-7)).bfloat16()
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if is_tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Steps of equal spectral size along the orthogonalized momentum; for hidden matrices only.

    Where several processes learn together, each works out a part of the directions.
    """

    def __init__(
        self, parameters: Iterable[Tensor], *, lr: float, momentum: float = 0.95, decay: float = 0.01
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # noqa: ARG002
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            for weight in weights:
                self._remember(weight, group)
            for weight, direction in zip(weights, self._directions(weights, group), strict=True):
                scale = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
                weight.mul_(1 - group["lr"] * group["decay"])
                weight.add_(direction, alpha=-group["lr"] * scale)

    def _remember(self, weight: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        state["momentum"].lerp_(weight.grad, 1 - group["momentum"])

    def _directions(self, weights: Sequence[Tensor], group: dict[str, Any]) -> list[Tensor]:
        def direction(weight: Tensor) -> Tensor:
            return orthogonalized(weight.grad.lerp(self.state[weight]["momentum"], group["momentum"]))

        return together.shared(weights, direction)


def optimizers(model: nn.Module, *, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of layers, AdamW for embeddings, heads, norms and biases."""
    matrices, others = [], []
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            inner = weight.ndim == 2 and ".layers." in name
            (matrices if inner else others).append(weight)
    adam = torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0)
    return [Muon(matrices, lr=muon_lr), adam]


def set_rate(group: list[torch.optim.Optimizer], share: float) -> None:
    """Scale every learning rate to a share of its first value."""
    for each in group:
        for parameters in each.param_groups:
            parameters.setdefault("first_lr", parameters["lr"])
            parameters["lr"] = parameters["first_lr"] * share
