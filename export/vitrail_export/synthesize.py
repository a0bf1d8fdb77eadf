"""Random weights in a published model's exact configuration: for benchmarks and tests, where real ones are not at hand.

No weight is drawn singly: one block of normal numbers is drawn from the seed, and every tensor is a run through it
from its own place on, scaled to its kind. The block's length is prime, so that no two rows of a matrix are equal. That
makes 16 GB a matter of writing.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from vitrail.errors import ExportError, OptionError
from vitrail_export.config import Layout, ModelConfig
from vitrail_export.config_write import in_layout, write_config
from vitrail_export.names import EMBEDDING, Weight, expected_tensors, published_name, weights
from vitrail_export.published import PUBLISHED, Published
from vitrail_export.synthetic_tokenizer import write_tokenizer
from vitrail_export.weights import INDEX, SINGLE, Shape

Progress: TypeAlias = Callable[[str, int], None]
Bits: TypeAlias = npt.NDArray[np.uint16]

SHARD_BYTES = 5_000_000_000
# The largest prime below 2**22.
BLOCK_ITEMS = 4_194_301


class Spread(NamedTuple):
    """Mean and standard deviation of a tensor's numbers, and which way through the block they are."""

    mean: float
    deviation: float
    backwards: bool = False


def synthesize(
    name: str,
    out: str | Path,
    *,
    layout: Layout = "original",
    seed: int = 0,
    layers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a checkpoint of random bf16 weights to the directory `out`, which it returns.

    `name` is one of PUBLISHED. `layers` cuts vision tower and language model to so many, and config.json says so.
    progress(tensor's name, its bytes) is called after every tensor; `size_bytes` is their sum. Raises OptionError for
    unknown names, a negative seed or a directory in use, ExportError where the disk has no room.
    """
    if seed < 0:
        raise OptionError(f"seed is {seed}; give 0 or more")
    return write_synthetic(
        _cut(_published(name), layers),
        Path(out),
        layout=layout,
        seed=seed,
        progress=progress or (lambda *_: None),
    )


def size_bytes(name: str, *, layers: int | None = None) -> int:
    """How many bytes of weights `synthesize` writes."""
    return sum(map(_bf16_bytes, _tensors(_cut(_published(name), layers).config).values()))


def write_synthetic(model: Published, out: Path, *, layout: Layout, seed: int, progress: Progress) -> Path:
    """As `synthesize`, for any configuration."""
    if layout not in get_args(Layout):
        raise OptionError(f"layout '{layout}' is unknown; supported: {', '.join(get_args(Layout))}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OptionError(f"'{out}' exists and is not an empty directory; give a new one")
    config = in_layout(model.config, layout)
    out.mkdir(parents=True, exist_ok=True)
    _check_room(out, sum(map(_bf16_bytes, _tensors(config).values())))
    _write_weights(config, out, seed, progress)
    write_tokenizer(model.vocabulary, out)
    write_config(config, out, image_context_id=model.vocabulary.added_ids["<IMG_CONTEXT>"])
    return out


def _published(name: str) -> Published:
    if name not in PUBLISHED:
        raise OptionError(f"'{name}' is no model that can be synthesized; supported: {', '.join(PUBLISHED)}")
    return PUBLISHED[name]


def _cut(model: Published, layers: int | None) -> Published:
    if layers is None:
        return model
    if layers < 1:
        raise OptionError(f"layers is {layers}; give 1 or more, or leave it out for the published number")
    config = model.config
    most = max(config.vision.layers, config.text.layers)
    if layers > most:
        raise OptionError(
            f"layers is {layers}, the published model has {most}; give at most that, or leave it out"
        )
    vision = dataclasses.replace(config.vision, layers=min(layers, config.vision.layers))
    text = dataclasses.replace(config.text, layers=min(layers, config.text.layers))
    return dataclasses.replace(model, config=dataclasses.replace(config, vision=vision, text=text))


def _check_room(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out).free
    if needed > free:
        raise ExportError(
            f"'{out}' has room for {free / 1e9:.1f} GB, the weights need {needed / 1e9:.1f} GB; "
            "free some or choose another directory"
        )


def _tensors(config: ModelConfig) -> dict[str, Shape]:
    """The tensors of the checkpoint by the names that published files use."""
    return {published_name(name): shape for name, shape in expected_tensors(_plan(config)).items()}


def _plan(config: ModelConfig) -> dict[str, Weight]:
    return weights(config, own_head=not config.text.tie_word_embeddings)


def _bf16_bytes(shape: Shape) -> int:
    return 2 * math.prod(shape)


def _shards(shapes: Mapping[str, Shape]) -> list[dict[str, Shape]]:
    """Tensors in order, as many to a file as it may hold."""
    shards: list[dict[str, Shape]] = [{}]
    for name, shape in shapes.items():
        if sum(map(_bf16_bytes, shards[-1].values())) + _bf16_bytes(shape) > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = shape
    return shards


def _write_weights(config: ModelConfig, out: Path, seed: int, progress: Progress) -> None:
    shapes, spreads, numbers = _tensors(config), _spreads(config), Numbers(seed)
    shards = _shards(shapes)
    files = [f"model-{at:05}-of-{len(shards):05}.safetensors" for at in range(1, len(shards) + 1)]
    files = files if len(shards) > 1 else [SINGLE]
    for file, shard in zip(files, shards, strict=True):
        _write_shard(out / file, shard, spreads, numbers, progress)
    if len(shards) > 1:
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": sum(map(_bf16_bytes, shapes.values()))}, "weight_map": weight_map}
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_shard(
    path: Path,
    shard: Mapping[str, Shape],
    spreads: Mapping[str, Spread],
    numbers: Numbers,
    progress: Progress,
) -> None:
    with path.open("wb") as file:
        file.write(safetensors_header(shard))
        for name, shape in shard.items():
            for block in numbers.blocks(name, spreads[name], math.prod(shape)):
                block.tofile(file)
            progress(name, _bf16_bytes(shape))


def safetensors_header(shapes: Mapping[str, Shape]) -> bytes:
    """The header of a file that holds these bf16 tensors in this order, padded as the format asks."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        end = at + _bf16_bytes(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class Numbers:
    """Runs of bf16 normal numbers, the same for the same seed and name."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._normal = np.random.default_rng(seed).standard_normal(BLOCK_ITEMS, np.float32)
        self._scaled = lru_cache(maxsize=16)(self._scale)

    def blocks(self, name: str, spread: Spread, items: int, *, first: int = 0) -> Iterator[Bits]:
        """`items` numbers of a tensor from its `first` on, in pieces: the block over and over, from the name's own
        place on.
        """
        block, at = self._scaled(spread), (self._start(name) + first) % BLOCK_ITEMS
        while items:
            piece = block[at : at + items]
            yield piece
            items, at = items - piece.size, 0

    def _start(self, name: str) -> int:
        return int(np.random.default_rng([self._seed, *name.encode()]).integers(BLOCK_ITEMS))

    def _scale(self, spread: Spread) -> Bits:
        """The block in bf16, rounded to nearest."""
        normal = self._normal[::-1] if spread.backwards else self._normal
        bits = (normal * np.float32(spread.deviation) + np.float32(spread.mean)).view(np.uint32)
        return ((bits + np.uint32(0x8000)) >> np.uint32(16)).astype(np.uint16)


def _spreads(config: ModelConfig) -> dict[str, Spread]:
    """Each published tensor's spread, by what our name for it says it is."""
    return {
        published_name(rows.tensor): spread_of(name, weight.shape)
        for name, weight in _plan(config).items()
        for rows in weight.rows
    }


def spread_of(name: str, shape: Shape) -> Spread:
    """Matrices keep the size of what goes through them, norms are near 1, layer scales about a half: activations stay
    within a few dozen, far inside float16.
    """
    if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")):
        return Spread(1.0, 0.05)
    if name.endswith((".ls1", ".ls2")):
        return Spread(0.5, 0.1)
    if name.endswith((".bias", "_embedding")):
        return Spread(0.0, 0.02)
    if name == EMBEDDING:
        # Forwards, thousands of its rows would be rows of a matrix that they are multiplied with, too: no key is so large.
        return Spread(0.0, 0.5, backwards=True)
    gain = 2.0 if name == "text.lm_head.weight" else 1.0
    return Spread(0.0, gain / math.sqrt(math.prod(shape[1:])))
