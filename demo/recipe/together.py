"""Several processes that learn as one: `python -m torch.distributed.run --nproc-per-node N -m demo.recipe train ...`.

On a shared machine a process of one thread for each core gets more done than one process whose threads wait for each
other.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor, distributed

RANK = int(os.environ.get("RANK", "0"))


def join() -> None:
    """Meet the other processes, if torch.distributed.run started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        distributed.init_process_group("gloo")


def mean(parameters: list[Tensor], figures: list[float]) -> list[float]:
    """Replace gradients by their mean over all processes; the means of `figures`, alike in every process."""
    if not distributed.is_initialized():
        return figures
    learned = [each for each in parameters if each.requires_grad]
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in learned]
    flat = torch.cat([*(each.flatten() for each in gradients), torch.tensor(figures)])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    parts = flat.split([each.numel() for each in learned] + [len(figures)])
    for each, part in zip(learned, parts, strict=False):
        each.grad = part.view_as(each)
    return [float(each) for each in parts[-1]]
