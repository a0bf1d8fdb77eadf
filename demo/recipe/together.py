"""Several processes that learn as one: `python -m torch.distributed.run --nproc-per-node N -m demo.recipe train ...`.

On a shared machine a process of one thread for each core gets more done than one process whose threads wait for each
other. Beside a GPU several processes draw pictures for it at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, distributed

RANK, SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def join() -> None:
    """Meet the other processes, if torch.distributed.run started several."""
    if SIZE > 1:
        distributed.init_process_group("gloo")


def shared(inputs: Sequence[Tensor], work: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """`work` of every input, of its shape; each process does a part of it."""
    if not distributed.is_initialized():
        return [work(each) for each in inputs]
    done = [work(each) if at % SIZE == RANK else torch.zeros_like(each) for at, each in enumerate(inputs)]
    flat = _sum(torch.cat([each.flatten() for each in done]))
    parts = flat.split([each.numel() for each in inputs])
    return [part.view_as(each) for part, each in zip(parts, inputs, strict=True)]


def mean(parameters: list[Tensor], figures: list[float]) -> list[float]:
    """Replace gradients by their mean over all processes; the means of `figures`, alike in every process."""
    if not distributed.is_initialized():
        return figures
    learned = [each for each in parameters if each.requires_grad]
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in learned]
    flat = _sum(torch.cat([*(each.flatten() for each in gradients), torch.tensor(figures)]))
    flat /= distributed.get_world_size()
    parts = flat.split([each.numel() for each in learned] + [len(figures)])
    for each, part in zip(learned, parts, strict=False):
        each.grad = part.view_as(each)
    return [float(each) for each in parts[-1]]


def _sum(flat: Tensor) -> Tensor:
    """Over all processes, which may share a GPU: by way of the host."""
    on_host = flat.cpu()
    distributed.all_reduce(on_host)
    return on_host.to(flat.device)
