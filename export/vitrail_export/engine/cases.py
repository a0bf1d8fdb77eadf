"""What a graph is tried on before an engine is built from it: pictures, and activations as extreme as models have them.

Language models and large vision transformers carry a few channels whose magnitude is hundreds of times the others'
(Sun et al., Massive Activations in Large Language Models, 2024). float16 overflows where such values are squared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.errors import OptionError
from vitrail.images import open_image
from vitrail.manifest import Manifest
from vitrail.tiling import split
from vitrail_export.graph import Array
from vitrail_export.verify import sample_tiles

OUTLIER = 2048.0
SMOOTH = "a smooth picture"
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


@dataclass(frozen=True, slots=True)
class Case:
    """One run of a graph. real: a picture that a user gave; artificial: one that no camera takes.

    ignored: channels of the output's last axis that are outliers themselves, of `period`.
    """

    name: str
    feeds: dict[str, Array]
    real: bool = False
    artificial: bool = False
    ignored: tuple[int, ...] = field(default=())
    period: int = 1

    def compared(self, output: Array) -> Array:
        if not self.ignored:
            return output
        kept: Array = output[..., ~np.isin(np.arange(output.shape[-1]) % self.period, self.ignored)]
        return kept


def vision_cases(manifest: Manifest, pictures: tuple[Path, ...], positions: Array) -> list[Case]:
    """positions: the position embedding [1, 1 + patches, d], through which outliers enter the residual stream."""
    drawn = _extremes(manifest.vision.tile_size).items()
    found = [Case(SMOOTH, {"tiles": sample_tiles(manifest)})]
    found += [Case(name, {"tiles": tile}, artificial=True) for name, tile in drawn]
    found += [Case(path.name, {"tiles": tile}, real=True) for path, tile in _read(manifest, pictures)]
    width = positions.shape[-1]
    extreme, channels = outliers(positions)
    feeds = {"tiles": sample_tiles(manifest), "vision.position_embedding": extreme}
    return [*found, Case("extreme activations", feeds, ignored=channels, period=width)]


def outliers(x: Array) -> tuple[Array, tuple[int, ...]]:
    """x [..., d] with OUTLIER added to one channel and taken from another: (float32 [..., d], the channels)."""
    channels = (1, x.shape[-1] // 2)
    extreme = x.astype(np.float32)
    extreme[..., channels] += np.array([OUTLIER, -OUTLIER], np.float32)
    return extreme, channels


def _extremes(size: int) -> dict[str, Array]:
    shape = (1, 3, size, size)
    checks = np.indices((size, size)).sum(axis=0) % 2 * np.uint8(255)
    noise = np.random.default_rng(0).integers(0, 2, shape) * 255
    return {
        "black": np.zeros(shape, np.uint8),
        "a checkerboard": np.broadcast_to(checks, shape).astype(np.uint8),
        "noise": noise.astype(np.uint8),
    }


def _read(manifest: Manifest, pictures: tuple[Path, ...]) -> Iterator[tuple[Path, Any]]:
    """Every picture as one tile."""
    for path in picture_files(pictures):
        image = open_image(path)
        yield path, split(image, max_tiles=1, tile_size=manifest.vision.tile_size, thumbnail=False)


def picture_files(pictures: tuple[Path, ...]) -> list[Path]:
    """Files as they are named, folders by their picture files. Raises OptionError where there are none."""
    found: list[Path] = []
    for path in pictures:
        if not path.exists():
            raise OptionError(f"there is no picture '{path}'; name files or folders of pictures")
        inside = (
            sorted(each for each in path.iterdir() if each.suffix.lower() in SUFFIXES)
            if path.is_dir()
            else [path]
        )
        if not inside:
            raise OptionError(
                f"'{path}' holds no pictures ({', '.join(sorted(SUFFIXES))}); name a folder that does"
            )
        found += inside
    return found
