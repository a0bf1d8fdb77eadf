"""transformers with SDPA: as fast as it is without changing it, no `generate` with its checks between tokens.

precision bf16; fp32 is what every contestant's accuracy is compared with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench.peers.worker import Array, Options
from safetensors import safe_open
from transformers import AutoModelForCausalLM, InternVLConfig, InternVLModel, StaticCache

Tensor = Any
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
PREFIXES = ("vision_tower.", "multi_modal_projector.")


class Contestant:
    packages = ("torch", "transformers")

    def __init__(self, options: Options) -> None:
        torch.set_num_threads(options.threads)
        self._options, self._dtype = options, DTYPES[options.precision]
        self._look: Look
        self._model: Any = None
        self._ids: Any = None
        self._cache: Any = None

    def prepare(self) -> None:
        """The checkpoint is in transformers' own layout."""

    def load(self, part: str) -> None:
        if part == "vision":
            self._look = Look(self._options.work / "checkpoint", self._dtype)
            return
        path = self._options.work / "language"
        loaded = AutoModelForCausalLM.from_pretrained(path, dtype=self._dtype, attn_implementation="sdpa")
        self._model = loaded.eval()

    @torch.inference_mode()
    def see(self, tiles: Array) -> Array:
        return self._look(torch.from_numpy(tiles)).float().numpy()

    @torch.inference_mode()
    def first(self, ids: Array) -> int:
        return int(self._read(ids, self._new_cache(len(ids))))

    @torch.inference_mode()
    def logits(self, ids: Array) -> Array:
        wanted = torch.from_numpy(ids).long()[None]
        return self._model(input_ids=wanted, logits_to_keep=1, use_cache=False).logits[0, -1].float().numpy()

    @torch.inference_mode()
    def begin(self, ids: Array, *, rows: int, steps: int) -> None:
        """The prompt is read once and copied to the other rows."""
        self._cache = None
        cache = self._new_cache(len(ids) + steps)
        self._ids = self._read(ids, cache).repeat(rows, 1)
        for layer in cache.layers:
            layer.keys, layer.values = (each.repeat(rows, 1, 1, 1) for each in (layer.keys, layer.values))
            layer.batch_size = rows
        self._cache = cache

    @torch.inference_mode()
    def decode(self, steps: int) -> None:
        for _ in range(steps):
            self._ids = self._next(self._ids, self._cache)
        self._ids.numpy()

    def _new_cache(self, capacity: int) -> StaticCache:
        return StaticCache(config=self._model.config, max_cache_len=capacity)

    def _read(self, ids: Array, cache: Any) -> Tensor:
        return self._next(torch.from_numpy(ids).long()[None], cache)

    def _next(self, ids: Tensor, cache: Any) -> Tensor:
        """Ids [rows, n] -> the next ones [rows, 1]."""
        found = self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return found.logits[:, -1].argmax(-1, keepdim=True)


class Look(torch.nn.Module):
    """uint8 tiles -> embeds: transformers' vision tower and projector, without the language model."""

    def __init__(self, checkpoint: Path, dtype: torch.dtype) -> None:
        super().__init__()
        fields = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        with torch.device("meta"):
            config = InternVLConfig(**fields)
            model: Any = InternVLModel._from_config(config, attn_implementation="sdpa")  # noqa: SLF001
        model.language_model = None
        self.model = model.to_empty(device="cpu").to(dtype).eval()
        with safe_open(checkpoint / "model.safetensors", "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys() if name.startswith(PREFIXES)}  # noqa: SIM118
        missing = self.model.load_state_dict(state, strict=False).missing_keys
        if missing:
            raise ValueError(f"no weights for {missing[0]}")
        normal = json.loads((checkpoint / "preprocessor_config.json").read_text(encoding="utf-8"))
        for name in ("mean", "std"):
            each = 255 * torch.from_numpy(np.array(normal[f"image_{name}"], np.float32)).reshape(3, 1, 1)
            self.register_buffer(f"pixel_{name}", each, persistent=False)

    def forward(self, tiles: Tensor) -> Tensor:
        pixels = (tiles - self.pixel_mean) / self.pixel_std
        return self.model.get_image_features(pixel_values=pixels.to(self.model.dtype)).pooler_output
