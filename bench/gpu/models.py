"""What is measured: published configurations with random weights, and a tiny one for trying the benchmark out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from vitrail_export.config import ModelConfig, TextConfig, VisionConfig
from vitrail_export.exporter import ExportOptions
from vitrail_export.published import IMAGE_TOKENS, PUBLISHED, QWEN_TOKENS, Published, Vocabulary

Precision = Literal["fp16", "int4"]

TINY = "tiny"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything is measured; those of the tiny model only show that it runs.

    tiles of one vision run; prefill: prompt tokens; batches: rows of a decode step, each behind `past` tokens, for
    `steps` steps; picture_tiles: of the pictures asked about, concurrency: how many at once, peer_batches: how many
    of each of these sizes the peer answers at once.
    """

    tiles: tuple[int, ...] = (13, 1, 7, 40)
    prefill: tuple[int, ...] = (2048, 3400)
    batches: tuple[int, ...] = (1, 8, 32)
    past: int = 2048
    steps: int = 16
    picture_tiles: tuple[int, ...] = (13, 1)
    concurrency: tuple[int, ...] = (32, 8, 1)
    peer_batches: tuple[int, ...] = (8, 32)
    slots: int = 32
    context_tokens: int = 4096
    answer_tokens: int = 32
    rounds: int = 5
    copy_bytes: int = 4 << 30
    matrix_side: int = 8192

    def within(self, slots: int) -> Sizes:
        """For so many rows of KV cache: what asks for more at once is left out."""
        return dataclasses.replace(
            self,
            slots=slots,
            batches=tuple(rows for rows in self.batches if rows <= slots),
            concurrency=tuple(many for many in self.concurrency if many <= slots),
            peer_batches=tuple(min(rows, slots) for rows in self.peer_batches),
        )


TINY_SIZES = Sizes(
    tiles=(3, 1),
    prefill=(24, 40),
    batches=(1, 3),
    past=24,
    steps=4,
    picture_tiles=(3, 1),
    concurrency=(3, 1),
    peer_batches=(3, 3),
    slots=3,
    context_tokens=320,
    answer_tokens=4,
    rounds=2,
    copy_bytes=8 << 20,
    matrix_side=128,
)


@dataclass(frozen=True, slots=True)
class Subject:
    """One model at one precision of its language model; vision is float16 always."""

    name: str
    precision: Precision

    @property
    def title(self) -> str:
        return f"{self.name} {self.precision}"

    @property
    def published(self) -> Published:
        return _tiny() if self.name == TINY else PUBLISHED[self.name]

    @property
    def config(self) -> ModelConfig:
        return self.published.config

    @property
    def options(self) -> ExportOptions:
        precision: Literal["float16", "int4"] = "float16" if self.precision == "fp16" else "int4"
        return ExportOptions(precision=precision, vision_precision="float16", activations="float16")


def _tiny() -> Published:
    """Every part of InternVL3-8B in a few hundred thousand weights."""
    model = PUBLISHED["internvl3-8b"]
    vocabulary = Vocabulary("byte_level", 900, 900, (*QWEN_TOKENS, *IMAGE_TOKENS))
    vision: VisionConfig = dataclasses.replace(
        model.config.vision, hidden_size=64, layers=2, heads=4, intermediate_size=96, image_size=56
    )
    text: TextConfig = dataclasses.replace(
        model.config.text,
        hidden_size=64,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=16,
        intermediate_size=128,
        vocab_size=900 + len(vocabulary.added),
        context_tokens=512,
    )
    config = dataclasses.replace(
        model.config, vision=vision, text=text, tile_size=56, eos_ids=(vocabulary.first_added,)
    )
    return Published(config, vocabulary)
