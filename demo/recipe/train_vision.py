"""Stage 0: the vision tower alone learns which character stands where, on tiles full of characters."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from demo.recipe import oracle
from demo.recipe.loop import Lesson, Stage
from demo.recipe.model import Shape
from demo.recipe.muon import optimizers
from demo.recipe.render.charset import CODE_CLASSES
from demo.recipe.render.dense import dense_tile
from demo.recipe.render.page import Page
from demo.recipe.render.weather import weather
from demo.recipe.scene import Brush
from demo.recipe.scenes import MAKERS
from demo.recipe.sequence import page_codes, page_covers, page_tiles
from demo.recipe.state import normalized, on_device
from demo.recipe.vision import VisionModel

DENSE, SCENES = 11, 5
SMALLEST_PX, LARGEST_PX = 24, 48
BLANK_WEIGHT = 0.15
Labelled = tuple[npt.NDArray[np.uint8], oracle.Float32, oracle.Int64, oracle.Float32]


class VisionStage(nn.Module):
    """The tower with two heads that are dropped afterwards: centres of glyphs, and what covers a cell."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.vision_model = VisionModel(shape.vision_width, shape.vision_layers, shape.vision_heads)
        self.centres = nn.Linear(shape.vision_width, 2 * CODE_CLASSES)
        self.cover = nn.Linear(shape.vision_width, 2 * CODE_CLASSES)
        with torch.no_grad():
            self.centres.weight.copy_(2 * torch.eye(2 * CODE_CLASSES, shape.vision_width))

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[n, 3, 224, 224] -> features [n, 256, 192] and the logits of centres and cover [n, 256, 2, 96]."""
        features = self.vision_model(tiles)
        split = (*features.shape[:2], 2, CODE_CLASSES)
        return features, self.centres(features).view(split), self.cover(features).view(split)


def scene_pages(rng: random.Random, count: int) -> list[Page]:
    brush = Brush(rng)
    return [rng.choice(MAKERS[skill](brush).pages) for skill in rng.choices(sorted(MAKERS), k=count)]


def labelled_tile(page: Page, rng: random.Random) -> Labelled:
    """One tile of a page, the thumbnail among them, its shares of centres, its classes of cover, what to write."""
    weather(page, rng)
    tiles, codes = page_tiles(page), page_codes(page)
    covers = page_covers(page)
    at = rng.randrange(len(tiles))
    return tiles[at], codes[at], covers[at], oracle.written(codes[at], covers[at])


def labelled(tiles: list[Labelled]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tiles uint8 [n, 3, 224, 224], shares of centres [n, 256, 192], classes of cover [n, 256, 2], what to write."""
    pixels, codes, covers, written = (on_device(np.stack(each)) for each in zip(*tiles, strict=True))
    return pixels, codes, covers, written


def losses(
    outputs: tuple[Tensor, Tensor, Tensor], codes: Tensor, cover: Tensor, written: Tensor
) -> dict[str, Tensor]:
    """Cross entropies of centres and cover, and the squared error of the code itself; blank cells count less."""
    features, centre_logits, cover_logits = (each.float() for each in outputs)
    shares = codes.view_as(centre_logits)
    shares = shares / shares.sum(-1, keepdim=True)
    weight = BLANK_WEIGHT + (1 - BLANK_WEIGHT) * (1 - shares[..., 0])
    weight = weight / weight.sum()
    centres = -(weight * (shares * centre_logits.log_softmax(-1)).sum(-1)).sum()
    classes = torch.where(cover > 0, 1.0, BLANK_WEIGHT)
    each = functional.cross_entropy(cover_logits.flatten(0, 2), cover.flatten(), reduction="none")
    error = (features.view_as(shares) / oracle.AMPLITUDE - written.view_as(shares)).square().sum(-1)
    return {
        "centres": centres,
        "cover": (each * classes.flatten()).sum() / classes.sum(),
        "code": (weight * error).sum(),
    }


@torch.no_grad()
def accuracy(centre_logits: Tensor, codes: Tensor) -> float:
    """Share of the cells where a glyph has its centre for sure whose class is found."""
    shares = codes.view_as(centre_logits)
    sure = (1 - shares[..., 0]) > 0.8
    return (centre_logits.argmax(-1) == shares.argmax(-1))[sure].float().mean().item()


def stage(*, dense: int = DENSE, scenes: int = SCENES) -> Stage:
    """`dense` tiles full of characters and `scenes` tiles of the pictures that questions are asked about, each step."""
    model = VisionStage(Shape())

    def lesson(rng: random.Random, _step: int) -> Iterator[Lesson]:
        pages = [dense_tile(rng, smallest_px=SMALLEST_PX, largest_px=LARGEST_PX) for _ in range(dense)]
        tiles, codes, cover, written = labelled(
            [labelled_tile(page, rng) for page in (*pages, *scene_pages(rng, scenes))]
        )
        with torch.autocast(tiles.device.type, dtype=torch.bfloat16):
            outputs = model(normalized(tiles))
        parts = losses(outputs, codes, cover, written)
        figures = {name: part.item() for name, part in parts.items()}
        found = accuracy(outputs[1][:dense], codes[:dense]) if dense else 0.0
        yield Lesson(sum(parts.values(), torch.zeros(())), {**figures, "found": found}, dense + scenes)

    return Stage("vision", model, optimizers(model, muon_lr=0.02, adam_lr=2e-3), lesson)
