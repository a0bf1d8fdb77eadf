"""What the hardware allows: its two rates, measured, and from them the least time of every stage.

Samuel Williams et al., "Roofline: An Insightful Visual Performance Model", CACM 52(4), 2009: a stage takes at least its
operations over the matrix rate, and at least its bytes over the memory's bandwidth.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bench.gpu.device import Device
from bench.gpu.models import Sizes
from bench.gpu.timing import interleaved

from vitrail_export.config import ModelConfig
from vitrail_export.names import weight_shapes
from vitrail_export.weights import Shape

REPEATS = 20


@dataclass(frozen=True, slots=True)
class Roofline:
    """copy_gb_s: of a copy within the device, bytes read and written; matrix_tflop_s: of a float16 matrix product of
    random numbers.
    """

    copy_gb_s: float
    matrix_tflop_s: float

    def floor_ms(self, *, operations: float, bytes_moved: float) -> float:
        return 1e3 * max(operations / self.matrix_tflop_s / 1e12, bytes_moved / self.copy_gb_s / 1e9)

    def fields(self) -> dict[str, float]:
        return {name: round(value, 3) for name, value in asdict(self).items()}


def measure_roofline(device: Device, sizes: Sizes) -> Roofline:
    """Medians of 20 copies and 20 products, which torch runs."""
    torch = importlib.import_module("torch")
    size = min(sizes.copy_bytes, device.free_bytes() // 4)
    return Roofline(_copy_gb_s(torch, device, size), _matrix_tflop_s(torch, device, sizes.matrix_side))


def _copy_gb_s(torch: Any, device: Device, size: int) -> float:
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device.kind)
    target = torch.empty_like(source)
    return 2 * size / _median_ms(lambda: target.copy_(source), device) / 1e6


def _matrix_tflop_s(torch: Any, device: Device, side: int) -> float:
    dtype = torch.float16 if device.is_gpu else torch.float32
    left, right = (torch.randn(side, side, dtype=dtype, device=device.kind) for _ in range(2))
    return 2 * side**3 / _median_ms(lambda: left @ right, device) / 1e9


def _median_ms(action: Any, device: Device) -> float:
    series = interleaved({"": action}, rounds=REPEATS, synchronize=device.synchronize)[""]
    if series.median_ms is None:
        raise RuntimeError(f"the roofline could not be measured: {series.failure}")
    return series.median_ms


@dataclass(frozen=True, slots=True)
class Work:
    """What the stages of a model have to compute and to read. weight_bytes: of the language model's matrices as stored."""

    config: ModelConfig
    weight_bytes: int
    half_bytes: int = 2

    def vision_floor_ms(self, roof: Roofline, tiles: int) -> float:
        config = self.config
        vision, tokens = config.vision, config.tile_grid**2 + 1
        shapes = weight_shapes(config)
        matrices = _items(shapes, "vision.layers.") * tokens + _items(shapes, "vision.patch") * (tokens - 1)
        matrices += _items(shapes, "projector.fc") * config.tokens_per_tile
        attention = 2 * vision.layers * tokens**2 * vision.hidden_size
        weights = self.half_bytes * (_items(shapes, "vision.") + _items(shapes, "projector."))
        return roof.floor_ms(operations=2 * tiles * (matrices + attention), bytes_moved=weights)

    def prefill_floor_ms(self, roof: Roofline, tokens: int) -> float:
        """Causal attention counts half; the head is applied to the last token only."""
        text = self.config.text
        matrices = _items(weight_shapes(self.config), "text.layers.") * tokens
        attention = text.layers * tokens**2 * text.heads * text.head_dim
        return roof.floor_ms(operations=2 * (matrices + attention), bytes_moved=self.weight_bytes)

    def decode_floor_ms(self, roof: Roofline, rows: int, cached_tokens: float) -> float:
        """Every matrix and every cached token is read once."""
        text = self.config.text
        operations = (
            2 * rows * (_items(weight_shapes(self.config), "text.") - text.vocab_size * text.hidden_size)
        )
        cache = 2 * text.layers * text.kv_heads * text.head_dim * self.half_bytes * rows * cached_tokens
        return roof.floor_ms(operations=operations, bytes_moved=self.weight_bytes + cache)

    @property
    def dense_bytes(self) -> int:
        """Of the language model's matrices in half precision, the embedding table left out."""
        text = self.config.text
        items = _items(weight_shapes(self.config), "text.") - text.vocab_size * text.hidden_size
        return self.half_bytes * items


def _items(shapes: Mapping[str, Shape], prefix: str) -> int:
    return sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(prefix))
