"""Prompts about a directory's pictures, for what is fitted to what a model sees.

A text file beside a picture, of its name with `.txt`, holds what is asked about it, and below its first line the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrail.core import PromptOptions, Uint8
from vitrail.errors import ImageError, OptionError
from vitrail.images import open_image
from vitrail.manifest import PromptContract
from vitrail.prompt import render
from vitrail.tiling import split
from vitrail.tokenizer import Tokenizer
from vitrail_export.checkpoint import Checkpoint
from vitrail_export.config import ModelConfig
from vitrail_export.weights import Float32

MOST_TOKENS, MOST_TILES = 8192, 32
PICTURE_TOKENS = 1024
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
QUESTIONS = (
    "Describe this picture in detail.",
    "What is written here? Read all of it.",
    "How many things do you see, and where are they?",
    "请描述这张图片。",
)


@dataclass(frozen=True, slots=True)
class Asking:
    """What prompts are written with."""

    tokenizer: Tokenizer
    contract: PromptContract
    image_context_id: int


def find_pictures(directory: Path) -> list[Path]:
    """Pictures in `directory`, by name. Raises OptionError where there is none."""
    if not directory.is_dir():
        raise OptionError(f"--calibration '{directory}' is no directory; name one with pictures")
    found = sorted(file for file in directory.iterdir() if file.suffix.lower() in SUFFIXES)
    if not found:
        raise OptionError(f"--calibration '{directory}' has no picture ({', '.join(SUFFIXES)}); put some in")
    return found


def picture_prompts(checkpoint: Checkpoint, directory: Path, asking: Asking) -> list[Float32]:
    """Embeddings [P, hidden_size] of prompts about the pictures, as the float32 reference sees them.

    Pictures are spread over the directory where all of them would be more than MOST_TOKENS tokens. Raises OptionError
    for an empty directory and for a picture that cannot be read, which it names.
    """
    files = find_pictures(directory)
    most = max(1, MOST_TOKENS // (_most_tiles(checkpoint) * checkpoint.config.tokens_per_tile))
    chosen = [files[at * len(files) // min(most, len(files))] for at in range(min(most, len(files)))]
    return [
        _prompt(checkpoint, file, asking, question=QUESTIONS[at % len(QUESTIONS)])
        for at, file in enumerate(chosen)
    ]


def calibration_tiles(config: ModelConfig, directory: Path | None) -> Uint8:
    """At most MOST_TILES tiles of a directory's pictures, spread over it and over each picture: uint8 [n, 3, S, S].

    Raises OptionError for a directory without pictures and for a picture that cannot be read, which it names.
    """
    assert directory is not None
    files = find_pictures(directory)
    chosen = [files[at] for at in spread(len(files), MOST_TILES)]
    each = max(1, MOST_TILES // len(chosen))
    cut = [_tiles(file, config) for file in chosen]
    return np.concatenate([tiles[spread(len(tiles), each)] for tiles in cut])


def _tiles(file: Path, config: ModelConfig) -> Uint8:
    try:
        image = open_image(file)
    except ImageError as error:
        raise OptionError(f"a calibration picture cannot be read: {error}; remove it or mend it") from error
    return split(image, max_tiles=config.max_tiles, tile_size=config.tile_size, thumbnail=config.thumbnail)


def spread(count: int, most: int) -> list[int]:
    """At most so many of `count` places, evenly from the first to the last."""
    return sorted({round(at) for at in np.linspace(0, count - 1, min(most, count))})


def _most_tiles(checkpoint: Checkpoint) -> int:
    return max(1, min(checkpoint.config.max_tiles + 1, PICTURE_TOKENS // checkpoint.config.tokens_per_tile))


def _prompt(checkpoint: Checkpoint, file: Path, asking: Asking, *, question: str) -> Float32:
    from vitrail_export.reference import Reference  # noqa: PLC0415  torch is needed here only

    config, reference = checkpoint.config, Reference(checkpoint)
    asked, answer = _note(file)
    content = [{"type": "image", "image": file}, {"type": "text", "text": asked or question}]
    try:
        prompt = render(
            [{"role": "user", "content": content}],
            contract=asking.contract,
            tile_size=config.tile_size,
            tokens_per_tile=config.tokens_per_tile,
            options=PromptOptions(max_tiles=max(1, _most_tiles(checkpoint) - 1)),
        )
    except ImageError as error:
        raise OptionError(f"a calibration picture cannot be read: {error}; remove it or mend it") from error
    asking_ids = asking.tokenizer.encode(prompt.segments, config.tokens_per_tile)
    answer_ids = asking.tokenizer.encode_text(answer, parse_special=False)
    ids = [*map(int, asking_ids), *map(int, answer_ids)]
    images = reference.embeds(reference.features(prompt.tiles))
    embeds: Float32 = reference.inputs_embeds(ids, images, image_context_id=asking.image_context_id)[0]
    return embeds


def _note(file: Path) -> tuple[str, str]:
    """The question and the answer that are written beside a picture; empty where they are not."""
    note = file.with_suffix(".txt")
    question, _, answer = note.read_text(encoding="utf-8").partition("\n") if note.is_file() else ("", "", "")
    return question.strip(), answer.strip()
