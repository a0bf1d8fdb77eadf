"""What a run leaves behind: weights, optimizers and counters in one file, and one line of JSON per report."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def save(path: Path, **parts: Any) -> None:
    """Write atomically: a run that is cut off leaves the file before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(parts, partial)
    partial.replace(path)


def load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    return torch.load(path, map_location=torch.get_default_device(), weights_only=True)


def parts_of(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
    return {"model": model.state_dict(), "optimizers": [each.state_dict() for each in optimizers]}


class Log:
    """Appends {"seconds": …, "samples": …, …} lines to a file, and prints them."""

    def __init__(self, path: Path) -> None:
        self.path, self.started = path, time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)

    def report(self, **figures: float | str) -> None:
        rounded = {
            name: round(each, 4) if isinstance(each, float) else each for name, each in figures.items()
        }
        line = json.dumps({"seconds": round(time.monotonic() - self.started), **rounded})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)  # noqa: T201


def on_device(array: npt.NDArray[np.generic]) -> Tensor:
    """As a tensor where the models are."""
    return torch.from_numpy(array).to(torch.get_default_device())


def normalized(tiles: Tensor) -> Tensor:
    """uint8 [n, 3, S, S] -> float32, as the vision tower wants it."""
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
    return (tiles.float() / 255 - mean) / std
