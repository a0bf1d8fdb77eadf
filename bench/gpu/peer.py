"""The same model in PyTorch: transformers' InternVL with SDPA and a static KV cache, on the same weights.

As fast as transformers is without changing it: no `generate` with its checks between tokens, greedy ids stay on the
device until the end, pictures arrive as uint8 and are normalized on the device.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from bench.gpu.weights import RandomWeights
from transformers import InternVLConfig, InternVLForConditionalGeneration, StaticCache

from vitrail.core import Int32, Uint8
from vitrail_export.config import ModelConfig
from vitrail_export.config_write import in_layout, write_config
from vitrail_export.names import canonical, file_names, layout_table
from vitrail_export.weights import blocks_of_rows

Tensor = Any
Step = Callable[[Any, StaticCache], Any]
BLOCK_BYTES = 256 << 20


class TorchPeer:
    """A model on one device. Ids and tiles come as numpy arrays; results stay on the device."""

    def __init__(self, config: ModelConfig, source: RandomWeights, *, device: str) -> None:
        """In half precision; in float32 on a CPU."""
        self.device, dtype = torch.device(device), torch.float32 if device == "cpu" else torch.float16
        self.dtype = dtype
        with self.device:
            self.model: Any = InternVLForConditionalGeneration._from_config(  # noqa: SLF001 - as transformers loads
                _config(config), dtype=dtype, attn_implementation="sdpa"
            ).eval()
        self._fill(in_layout(config, "hf"), source)
        self._language = self.model.model.language_model
        vision = config.vision
        self._mean, self._std = (
            torch.tensor(each, device=device).reshape(3, 1, 1) * 255 for each in (vision.mean, vision.std)
        )

    @property
    def weight_bytes(self) -> int:
        return sum(each.numel() * each.element_size() for each in self.model.parameters())

    @torch.inference_mode()
    def see(self, tiles: Uint8) -> Tensor:
        """uint8 [n, 3, S, S] -> embeds [n, tokens_per_tile, d]."""
        return self._look(self._pixels(tiles))

    @torch.inference_mode()
    def compiled_see(self, tiles: Uint8) -> Tensor:
        return self._compiled_look(self._pixels(tiles))

    @torch.inference_mode()
    def embed(self, ids: Int32) -> Tensor:
        """[n] -> [n, d]."""
        return self._language.embed_tokens(torch.from_numpy(ids).to(self.device))

    def cache(self, capacity: int) -> StaticCache:
        return StaticCache(config=self.model.config.get_text_config(), max_cache_len=capacity)

    @torch.inference_mode()
    def prefill(self, embeds: Tensor, cache: StaticCache) -> Tensor:
        """Embeds [B, P, d] -> the next ids [B, 1]."""
        return self._next(self._language(inputs_embeds=embeds, past_key_values=cache, use_cache=True))

    @torch.inference_mode()
    def logits(self, ids: Int32) -> Tensor:
        """Of the token behind ids [P]: float32 [vocab]."""
        found = self._language(inputs_embeds=self.embed(ids)[None], use_cache=False)
        return self.model.lm_head(found.last_hidden_state[0, -1]).float()

    def step(self, ids: Tensor, cache: StaticCache) -> Tensor:
        """One token of every row [B, 1] -> the next ones. For inference mode."""
        embeds = self._language.embed_tokens(ids)
        return self._next(self._language(inputs_embeds=embeds, past_key_values=cache, use_cache=True))

    @torch.inference_mode()
    def decode(self, ids: Tensor, cache: StaticCache, *, steps: int, step: Step | None = None) -> Tensor:
        """So many tokens more for every row [B, 1] -> the last ones. step: the compiled one, where it is not `step`."""
        for _ in range(steps):
            ids = (step or self.step)(ids, cache).clone()
        return ids

    @torch.inference_mode()
    def read(self, ids: Int32, tiles: Uint8, *, image_id: int, capacity: int) -> tuple[Tensor, StaticCache]:
        """Prompts [B, P] with pictures where `image_id` stands -> the next ids [B, 1], and a cache of `capacity` tokens."""
        embeds = self.embed(ids.reshape(-1))
        places = torch.from_numpy(ids.reshape(-1) == image_id).to(self.device)
        embeds[places] = self.see(tiles).reshape(-1, embeds.shape[-1]).to(embeds.dtype)
        cache = self.cache(capacity)
        return self.prefill(embeds.reshape(*ids.shape, -1), cache), cache

    @cached_property
    def compiled_step(self) -> Any:
        """`step` by torch.compile, with CUDA graphs; the first call of each shape compiles."""
        return torch.compile(self.step, mode="reduce-overhead", fullgraph=True)

    @cached_property
    def _compiled_look(self) -> Any:
        return torch.compile(self._look)

    def _look(self, pixels: Tensor) -> Tensor:
        return self.model.model.get_image_features(pixel_values=pixels).pooler_output

    def _pixels(self, tiles: Uint8) -> Tensor:
        raw = torch.from_numpy(tiles).to(self.device)
        return ((raw - self._mean) / self._std).to(self.dtype)

    def _next(self, output: Any) -> Tensor:
        return self.model.lm_head(output.last_hidden_state[:, -1:]).argmax(-1)

    @torch.no_grad()
    def _fill(self, config: ModelConfig, source: RandomWeights) -> None:
        """The weights of `source`, by the names of the layout of transformers."""
        parameters = {canonical(name): each for name, each in self.model.named_parameters()}
        table = layout_table(config)
        for name, shape in source.shapes.items():
            targets = [parameters.pop(target) for target in file_names(name, table)]
            first = 0
            for target in targets:
                _copy_rows(source, name, first, target)
                first += shape[0] // len(targets)
        if left := [name for name, each in parameters.items() if each.numel() and not _is_unused(name)]:
            raise AssertionError(f"no weights for {left[0]}")


def _is_unused(name: str) -> bool:
    return name.endswith("mask_token")


def _copy_rows(source: RandomWeights, name: str, first: int, target: Tensor) -> None:
    """Rows of a weight from `first` on into all of `target`."""
    count = target.shape[0]
    for start, stop in blocks_of_rows(count, 4 * target[0].numel(), block_bytes=BLOCK_BYTES):
        at = start * target[0].numel()
        flat = target.view(-1)
        for piece in source.bits(name, first + start, first + stop):
            bits = torch.from_numpy(piece.view("i2")).to(target.device).view(torch.bfloat16)
            flat[at : at + piece.size].copy_(bits)
            at += piece.size


def _config(config: ModelConfig) -> InternVLConfig:
    """Without dynamic rope, which starts beyond the context that is measured and asks the device at every step."""
    with tempfile.TemporaryDirectory() as directory:
        write_config(in_layout(config, "hf"), Path(directory), image_context_id=config.text.vocab_size - 1)
        fields = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))
    fields["text_config"].pop("rope_scaling")
    return InternVLConfig(**fields)
