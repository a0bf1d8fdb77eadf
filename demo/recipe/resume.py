"""Training that goes on from a written checkpoint, where its state is lost: the model's tensor names are the same.

The heads of stage 0, which a checkpoint drops, and all momenta begin anew.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from demo.recipe import train_text, train_vision
from demo.recipe.grow import layers_of
from demo.recipe.loop import Stage
from demo.recipe.model import Shape
from demo.recipe.state import parts_of, save


def resume_from(checkpoint: Path, directory: Path) -> None:
    """Write the states of stages 0 and 1 as they would be with the checkpoint's weights.

    Raises FileExistsError where there is a state already, RuntimeError or ValueError where the checkpoint is of another
    shape.
    """
    for name in ("vision", "text", "joint"):
        if (path := directory / f"{name}.pt").exists():
            raise FileExistsError(
                f"'{path}' holds a training state; move it away to start from '{checkpoint}'"
            )
    weights = load_file(checkpoint / "model.safetensors")
    if (layers := layers_of(weights)) != Shape().text_layers:
        raise ValueError(f"'{checkpoint}' has {layers} text layers, not the recipe's {Shape().text_layers}")
    _start(train_text.stage(), weights, directory)
    tower = {name: weight for name, weight in weights.items() if name.startswith("vision_model.")}
    _start(train_vision.stage(), tower, directory)


def _start(stage: Stage, weights: dict[str, Tensor], directory: Path) -> None:
    """Words are mastered, so that stage 1 skips its first steps."""
    stage.model.load_state_dict({**stage.model.state_dict(), **weights})
    parts = parts_of(stage.model, stage.optimizers)
    save(directory / f"{stage.name}.pt", step=train_text.FIRST_STEPS, samples=0, **parts)
