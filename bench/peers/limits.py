"""The least time that a stage could take on this machine: its operations over the matrix rate, its bytes over the
bandwidth, both as measured beside the samples. Samuel Williams et al., "Roofline", CACM 52(4), 2009.
"""

from __future__ import annotations

import math

from bench.peers.contest import Entry, Stage

from vitrail_export.config import ModelConfig
from vitrail_export.names import weight_shapes

BITS_OVERHEAD = {4: 4.5, 8: 8.5, 16: 16.0}
"""Bits of a weight with the scales of its block of 32."""


def least_seconds(
    config: ModelConfig, stage: Stage, entry: Entry, *, matrix_tflop_s: float, read_gb_s: float
) -> float:
    operations, moved = _vision(config, stage) if stage.kind == "vision" else _language(config, stage, entry)
    return max(operations / matrix_tflop_s / 1e12, moved / read_gb_s / 1e9)


def _vision(config: ModelConfig, stage: Stage) -> tuple[float, float]:
    vision, tokens = config.vision, config.tile_grid**2 + 1
    matrices = _items(config, "vision.layers.") * tokens + _items(config, "vision.patch") * (tokens - 1)
    matrices += _items(config, "projector.fc") * config.tokens_per_tile
    attention = 2 * vision.layers * tokens**2 * vision.hidden_size
    return 2.0 * stage.size * (matrices + attention), 0.0


def _language(config: ModelConfig, stage: Stage, entry: Entry) -> tuple[float, float]:
    """Prefill computes the head once, causal attention counts half; decode reads all weights and what is cached, a step."""
    text = config.text
    layers, head = _items(config, "text.layers."), text.vocab_size * text.hidden_size
    if stage.kind == "prefill":
        attention = text.layers * stage.size**2 * text.heads * text.head_dim
        return 2.0 * (layers * stage.size + attention), 0.0
    cached = 2 * text.layers * text.kv_heads * text.head_dim * entry.cache_bytes * stage.past * stage.size
    weights = layers * BITS_OVERHEAD[entry.bits] / 8 + head * BITS_OVERHEAD[max(8, entry.bits)] / 8
    return 2.0 * stage.amount * (layers + head), stage.steps * (weights + cached)


def _items(config: ModelConfig, prefix: str) -> int:
    shapes = weight_shapes(config)
    return sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(prefix))
