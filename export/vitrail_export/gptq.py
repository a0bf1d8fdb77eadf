"""Rounding that makes up for itself: what rounding one input's weights changes, the inputs after it take back.

Algorithm: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022;
inputs in the order of their second moments, steps fixed before ("act-order" with static groups).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from vitrail_export.graph import Bits

Tensor: TypeAlias = Any

DAMPING = 0.01
PANEL = 128
SHRINKS = 24
SMALLEST = 0.6
"""Steps are sought between that which the largest weight of a block calls for and this part of it."""


@dataclass(frozen=True, slots=True)
class Moments:
    """The second moments of a matrix's inputs, prepared for rounding.

    importance float32 [k]: their diagonal; order int64 [k]: inputs, most important first; factor float32 [k, k]:
    upper Cholesky factor of the inverse, in that order.
    """

    importance: Tensor
    order: Tensor
    factor: Tensor


def moments(inputs: Tensor) -> Moments:
    """Of inputs float32 [tokens, k]. A hundredth of the mean is added to the diagonal; inputs that never come count 1."""
    hessian = inputs.T @ inputs / inputs.shape[0]
    importance = hessian.diagonal().clone()
    hessian.diagonal().add_(DAMPING * importance.mean().clamp(min=1e-12))
    hessian.diagonal()[importance == 0] += 1
    order = torch.argsort(importance, descending=True)
    return Moments(importance, order, inverse_factor(hessian[order][:, order]))


def inverse_factor(matrix: Tensor) -> Tensor:
    """Upper triangular U with U.T @ U = inverse of a positive definite `matrix`, by one factorization and one solve."""
    backward = torch.linalg.cholesky(matrix.flip(0, 1)).flip(0, 1)
    identity = torch.eye(len(matrix))
    return torch.linalg.solve_triangular(backward, identity, upper=True)


def best_scales(weight: Tensor, importance: Tensor, *, bits: Bits, block: int) -> Tensor:
    """float32 [n, k] -> steps [n, k / block]: of several, those with the least error weighted by `importance` [k]."""
    middle = 1 << (bits - 1)
    blocks, weights = weight.reshape(len(weight), -1, block), importance.reshape(-1, block)
    widest = blocks.abs().amax(-1) / (middle - 1)
    widest[widest == 0] = 1
    best, least = widest, torch.full_like(widest, torch.inf)
    for shrink in torch.linspace(1, SMALLEST, SHRINKS) if bits == 4 else [1.0]:
        steps = widest * shrink
        rounded = (blocks / steps[..., None]).round_().clamp_(-middle, middle - 1).mul_(steps[..., None])
        error = rounded.sub_(blocks).square_().mul_(weights).sum(-1)
        best, least = torch.where(error < least, steps, best), torch.minimum(error, least)
    return best


def round_with_moments(weight: Tensor, given: Moments, *, bits: Bits, block: int) -> tuple[Tensor, Tensor]:
    """float32 [n, k] -> codes uint8 [n, k / block, block] and steps float32 [n, k / block]."""
    middle, inputs = 1 << (bits - 1), weight.shape[1]
    scales = best_scales(weight, given.importance, bits=bits, block=block)
    steps = scales.repeat_interleave(block, 1)[:, given.order]
    left = weight[:, given.order]
    codes = torch.empty_like(left)
    for start in range(0, inputs, PANEL):
        panel = slice(start, min(start + PANEL, inputs))
        own = given.factor[panel, panel]
        errors = _round_panel(left[:, panel], codes[:, panel], steps[:, panel], own, middle)
        left[:, panel.stop :] -= errors @ given.factor[panel, panel.stop :]
    unsorted = torch.empty_like(codes)
    unsorted[:, given.order] = codes
    return (unsorted + middle).to(torch.uint8).reshape(*scales.shape, block), scales


def _round_panel(left: Tensor, codes: Tensor, steps: Tensor, factor: Tensor, middle: int) -> Tensor:
    """Round a panel's inputs one after the other, in place; their errors [n, panel], for the inputs behind it."""
    left, errors = left.T.contiguous(), torch.empty_like(left.T)
    for at in range(len(left)):
        step = steps[:, at]
        codes[:, at] = (left[at] / step).round_().clamp_(-middle, middle - 1)
        errors[at] = (left[at] - codes[:, at] * step) / factor[at, at]
        left[at + 1 :] -= factor[at, at + 1 :, None] * errors[at]
    return errors.T
