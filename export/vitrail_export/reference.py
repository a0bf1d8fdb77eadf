"""A float32 PyTorch model of a checkpoint, written for plainness: what exported graphs are measured against; and the same
in bfloat16.

Weights are read when a layer runs and dropped behind it, so that a model larger than the memory can be run. The
algorithm is that of the authors (OpenGVLab/InternVL, internvl_chat/internvl/model: modeling_intern_vit.py,
modeling_internvl_chat.py, internlm2/modeling_internlm2.py) with eager attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from vitrail_export.checkpoint import Checkpoint
from vitrail_export.config import TextConfig
from vitrail_export.names import EMBEDDING, HEAD
from vitrail_export.weights import Float32, blocks_of_rows

Tensor: TypeAlias = Any
Uint8: TypeAlias = npt.NDArray[np.uint8]

PROJECTOR_EPS = 1e-5
HEAD_BLOCK_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Reference:
    """Every stage of the model, numpy in and out. All arrays are float32 but the tiles.

    dtype: of weights and activations. Normalizations and softmax are in float32 whatever it is.
    """

    dtype: ClassVar[Any] = torch.float32
    checkpoint: Checkpoint

    def features(self, tiles: Uint8) -> Float32:
        """RGB tiles uint8 [n, 3, S, S] -> pixel-shuffled features [n, tokens_per_tile, feature_size]."""
        config = self.checkpoint.config
        with torch.inference_mode():
            x = self._patches(torch.from_numpy(tiles))
            for layer in range(config.vision_layers):
                x = self._vision_layer(f"vision.layers.{layer}", x)
            return _numpy(pixel_shuffle(x[:, 1:], config.shuffle, config.ps_version))

    def embeds(self, features: Float32) -> Float32:
        """Features [n, T, feature_size] -> embeddings [n, T, hidden_size] that stand in the token sequence."""
        with torch.inference_mode():
            x = self._layer_norm("projector.norm", self._given(features), PROJECTOR_EPS)
            x = functional.gelu(self._linear("projector.fc1", x))
            return _numpy(self._linear("projector.fc2", x))

    def token_embeds(self, token_ids: Sequence[int]) -> Float32:
        """Token ids -> rows of the embedding table [n, hidden_size]."""
        rows = [self.checkpoint.load_rows(EMBEDDING, each, each + 1) for each in token_ids]
        return (
            np.concatenate(rows)
            if rows
            else np.empty((0, self.checkpoint.config.text.hidden_size), np.float32)
        )

    def inputs_embeds(
        self, token_ids: Sequence[int], image_embeds: Float32, *, image_context_id: int
    ) -> Float32:
        """[1, P, hidden_size]: the embeddings of the tokens, every `image_context_id` replaced by the next row
        of `image_embeds` [n, T, hidden_size].
        """
        spliced = self.token_embeds(token_ids)
        spliced[np.asarray(token_ids) == image_context_id] = image_embeds.reshape(-1, spliced.shape[1])
        return spliced[None]

    def logits(self, inputs_embeds: Float32, *, positions: Sequence[int] | None = None) -> Float32:
        """[1, P, hidden_size] -> next-token logits [P, vocab_size], or of the wanted positions only."""
        text = self.checkpoint.config.text
        with torch.inference_mode():
            x = self._given(inputs_embeds[0])
            rope = rotations(x.shape[0], text)
            for layer in range(text.layers):
                x = self._text_layer(f"text.layers.{layer}", x, rope)
            x = self._rms_norm("text.norm", x, text.eps)
            return self._head(x if positions is None else x[list(positions)])

    def _given(self, x: Float32) -> Tensor:
        return torch.from_numpy(x).to(self.dtype)

    def _weight(self, name: str) -> Tensor:
        return self._given(self.checkpoint.load(name))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        bias = f"{name}.bias"
        return functional.linear(
            x, self._weight(f"{name}.weight"), self._weight(bias) if bias in self.checkpoint.names() else None
        )

    def _layer_norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        weight, bias = (self._weight(f"{name}.{each}").float() for each in ("weight", "bias"))
        return functional.layer_norm(x.float(), x.shape[-1:], weight, bias, eps).to(self.dtype)

    def _rms_norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        wide, weight = x.float(), self._weight(f"{name}.weight").float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * weight).to(self.dtype)

    def _patches(self, tiles: Tensor) -> Tensor:
        """Normalized tiles -> class token and patches with their positions [n, 1 + patches, hidden]."""
        vision = self.checkpoint.config.vision
        mean, std = (torch.tensor(each).reshape(3, 1, 1) for each in (vision.mean, vision.std))
        patches = functional.conv2d(
            ((tiles.float() / 255 - mean) / std).to(self.dtype),
            self._weight("vision.patch_embedding.weight"),
            self._weight("vision.patch_embedding.bias"),
            stride=vision.patch_size,
        )
        cls = self._weight("vision.class_embedding").expand(tiles.shape[0], 1, -1)
        return torch.cat([cls, patches.flatten(2).transpose(1, 2)], dim=1) + self._weight(
            "vision.position_embedding"
        )

    def _vision_norm(self, name: str, x: Tensor) -> Tensor:
        vision = self.checkpoint.config.vision
        norm = self._layer_norm if vision.norm_type == "layer_norm" else self._rms_norm
        return norm(name, x, vision.eps)

    def _vision_layer(self, at: str, x: Tensor) -> Tensor:
        x = x + self._weight(f"{at}.ls1") * self._vision_attention(
            f"{at}.attn", self._vision_norm(f"{at}.norm1", x)
        )
        inner = functional.gelu(self._linear(f"{at}.mlp.fc1", self._vision_norm(f"{at}.norm2", x)))
        return x + self._weight(f"{at}.ls2") * self._linear(f"{at}.mlp.fc2", inner)

    def _vision_attention(self, at: str, x: Tensor) -> Tensor:
        vision = self.checkpoint.config.vision
        q, k, v = self._linear(f"{at}.qkv", x).chunk(3, dim=-1)
        if vision.qk_normalization:
            # Over all heads at once, unlike language models'.
            q, k = (
                self._rms_norm(f"{at}.q_norm", q, vision.eps),
                self._rms_norm(f"{at}.k_norm", k, vision.eps),
            )
        split = [split_heads(each, vision.head_dim) for each in (q, k, v)]
        attended = torch.stack([attention(*of_tile, causal=False) for of_tile in zip(*split, strict=True)])
        return self._linear(f"{at}.proj", merge_heads(attended))

    def _text_layer(self, at: str, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        eps = self.checkpoint.config.text.eps
        x = x + self._text_attention(f"{at}.attn", self._rms_norm(f"{at}.input_norm", x, eps), rope)
        y = self._rms_norm(f"{at}.post_norm", x, eps)
        inner = functional.silu(self._linear(f"{at}.mlp.gate", y)) * self._linear(f"{at}.mlp.up", y)
        return x + self._linear(f"{at}.mlp.down", inner)

    def _text_attention(self, at: str, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        text = self.checkpoint.config.text
        q = split_heads(self._linear(f"{at}.q", x), text.head_dim)
        k, v = self._cached(at, x)
        if text.qk_norm:
            q = self._rms_norm(f"{at}.q_norm", q, text.eps)
        return self._linear(f"{at}.o", merge_heads(self._attend(at, q, k, v, rope)))

    def _cached(self, at: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys before they are rotated, and values: [kv_heads, P, d]."""
        text = self.checkpoint.config.text
        k, v = (split_heads(self._linear(f"{at}.{each}", x), text.head_dim) for each in "kv")
        return (self._rms_norm(f"{at}.k_norm", k, text.eps) if text.qk_norm else k), v

    def _attend(self, _at: str, q: Tensor, k: Tensor, v: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Causal attention of one sequence, rotated here: q [heads, P, d], k and v [kv_heads, P, d] -> [heads, P, d]."""
        return attention(rotate(q, rope), rotate(k, rope), v, causal=True)

    def _head(self, x: Tensor) -> Float32:
        """In blocks of the vocabulary: a large one's float32 matrix is gigabytes."""
        vocab, width = self.checkpoint.shape(HEAD)
        logits = np.empty((x.shape[0], vocab), np.float32)
        for start, stop in blocks_of_rows(vocab, 4 * width, block_bytes=HEAD_BLOCK_BYTES):
            logits[:, start:stop] = _numpy(functional.linear(x, self._head_rows(start, stop)))
        return logits

    def _head_rows(self, start: int, stop: int) -> Tensor:
        return self._given(self.checkpoint.load_rows(HEAD, start, stop))


class Bfloat16(Reference):
    """The reference as it is run on GPUs: every weight and result rounded to bfloat16."""

    __slots__ = ()
    dtype = torch.bfloat16


def pixel_shuffle(x: Tensor, factor: int, version: str) -> Tensor:
    """[n, g * g, c] -> [n, (g / factor)**2, c * factor**2]: neighbouring patches' channels become one token's.

    v1 leaves rows and columns of the tokens swapped, as checkpoints trained with it expect.
    """
    count, patches, channels = x.shape
    side = round(patches**0.5)
    small = side // factor
    x = x.reshape(count, side, small, factor * channels).permute(0, 2, 1, 3)
    x = x.reshape(count, small, small, factor * factor * channels)
    x = x.permute(0, 2, 1, 3) if version == "v2" else x
    return x.reshape(count, small * small, -1)


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """[..., P, heads * head_dim] -> [..., heads, P, head_dim]."""
    return x.unflatten(-1, (-1, head_dim)).transpose(-2, -3)


def merge_heads(x: Tensor) -> Tensor:
    """[..., heads, P, head_dim] -> [..., P, heads * head_dim]."""
    return x.transpose(-2, -3).flatten(-2)


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    """q [heads, P, d], k and v [kv_heads, P, d] -> [heads, P, d]; one KV head at a time, to bound the scores' memory."""
    groups, length = q.shape[0] // k.shape[0], q.shape[1]
    mask = torch.full((length, length), float("-inf")).triu(1) if causal else torch.zeros(1, 1)
    out = torch.empty_like(q)
    for head in range(k.shape[0]):
        rows = slice(head * groups, (head + 1) * groups)
        scores = (q[rows] @ k[head].T).float() * q.shape[-1] ** -0.5 + mask
        out[rows] = scores.softmax(-1).to(q.dtype) @ v[head]
    return out


def rotations(length: int, text: TextConfig) -> tuple[Tensor, Tensor]:
    """cos and sin [length, head_dim] of plain rotary positions; both halves of the last axis turn alike."""
    frequencies = 1 / text.rope_theta ** (torch.arange(0, text.head_dim, 2).float() / text.head_dim)
    angles = torch.arange(length).float()[:, None] * frequencies
    angles, dtype = torch.cat([angles, angles], dim=-1), getattr(torch, text.rope_dtype)
    return angles.cos().to(dtype).float(), angles.sin().to(dtype).float()


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions on [heads, P, head_dim]: element i turns with element i + head_dim / 2."""
    cos, sin = (each.to(x.dtype) for each in rope)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _numpy(x: Tensor) -> Float32:
    return np.ascontiguousarray(x.float().numpy())
