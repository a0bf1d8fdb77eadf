"""Stage 2: the whole model on pictures, end to end; the vision tower keeps learning characters beside it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from demo.recipe import curriculum
from demo.recipe.loop import Lesson, Stage
from demo.recipe.model import DemoModel, Shape
from demo.recipe.muon import optimizers
from demo.recipe.render.dense import dense_tile
from demo.recipe.scene import Scene
from demo.recipe.sequence import batch, image_context_id, page_covers
from demo.recipe.state import load, normalized, on_device
from demo.recipe.train_text import answer_loss
from demo.recipe.train_vision import (
    LARGEST_PX,
    SMALLEST_PX,
    VisionStage,
    accuracy,
    labelled,
    labelled_tile,
    losses,
)

TILES, DENSE_TILES, MOST_TILES = 16, 4, 13
VISION_SHARE = 0.3


class Joint(nn.Module):
    """The model and the heads of stage 0."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.vision = VisionStage(shape)
        self.demo = DemoModel(shape)
        self.demo.vision_model = self.vision.vision_model

    def start_from(self, directory: Path) -> None:
        """Take the vision tower of stage 0 and the rest of stage 1."""
        text = load(directory / "text.pt")["model"]
        self.demo.load_state_dict(text)
        self.vision.load_state_dict(load(directory / "vision.pt")["model"])


def stage(
    directory: Path, *, muon_lr: float = 0.01, adam_lr: float = 1e-3, most_tiles: int = MOST_TILES
) -> Stage:
    """Begins with stages 0 and 1 in `directory`; the loop then loads what this stage has reached before, if it has."""
    model = Joint(Shape())
    if not (directory / "joint.pt").is_file():
        model.start_from(directory)
    context = image_context_id()

    def lesson(rng: random.Random, _step: int) -> Iterator[Lesson]:
        scenes = curriculum.scenes(rng, curriculum.MIXED, tiles=TILES, draws=True, most_tiles=most_tiles)
        data = batch(scenes, pixels=True)
        dense = [dense_tile(rng, smallest_px=SMALLEST_PX, largest_px=LARGEST_PX) for _ in range(DENSE_TILES)]
        tiles, codes, covers, written = labelled([labelled_tile(page, rng) for page in dense])
        scene_covers = _covers(scenes)
        with torch.autocast(tiles.device.type, dtype=torch.bfloat16):
            outputs = model.vision(normalized(torch.cat([data.pictures, tiles])))
        parts = losses(
            outputs,
            torch.cat([data.codes, codes]),
            torch.cat([scene_covers, covers]),
            torch.cat([data.written, written]),
        )
        answers = answer_loss(model.demo, data, outputs[0][: len(data.pictures)], context)
        found = accuracy(outputs[1][len(data.pictures) :], codes)
        figures = {"loss": answers.loss.item(), "found": found, scenes[0].skill: answers.right}
        loss = answers.total + VISION_SHARE * sum(parts.values(), torch.zeros(()))
        yield Lesson(loss, figures, len(scenes))

    group = optimizers(model, muon_lr=muon_lr, adam_lr=adam_lr)
    return Stage("joint", model, group, lesson)


def _covers(scenes: list[Scene]) -> Tensor:
    pages = [page for scene in scenes for page in scene.pages]
    return torch.cat([on_device(page_covers(page)) for page in pages])
