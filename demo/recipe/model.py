"""The model, with the tensor names of the authors' layout (InternVLChatModel and InternLM2).

Every module attribute is part of a tensor's name, so that converting a trained model is a matter of dtype.
Source of the layout: OpenGVLab/InternVL, internvl_chat/internvl/model. Depth can grow later without changing what the
model computes: a new vision layer starts with layer scales of 0, a new text layer with output matrices of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from demo.recipe.attend import attend
from demo.recipe.vision import VisionModel

ROPE_THETA = 10000.0
# The watched layer and those behind it; with the linking one before it, and with the counting one before that.
AFTER_WATCHED = 2
AFTER_LINKING = AFTER_WATCHED + 1
AFTER_COUNTING = AFTER_LINKING + 1


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model. `tokens` is the longest sequence that it is trained for."""

    vision_width: int = 192
    vision_layers: int = 4
    vision_heads: int = 3
    text_width: int = 256
    text_layers: int = 8
    text_heads: int = 4
    text_kv_heads: int = 2
    text_hidden: int = 704
    vocabulary: int = 512
    tokens: int = 2048


class Kept:
    """Of one layer, for losses of its own: states [n, P, d] before it, queries and keys [n, heads, P, size] in it."""

    states: Tensor
    query: Tensor
    key: Tensor


class Attention(nn.Module):
    """Grouped-query attention with one matrix: for each KV head its queries, its key, its value."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.kv_heads, self.size = shape.text_kv_heads, shape.text_width // shape.text_heads
        self.groups = shape.text_heads // shape.text_kv_heads
        self.wqkv = nn.Linear(shape.text_width, self.kv_heads * (self.groups + 2) * self.size, bias=False)
        self.wo = nn.Linear(shape.text_width, shape.text_width, bias=False)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], kept: Kept | None = None) -> Tensor:
        count, length, _ = x.shape
        split = self.wqkv(x).view(count, length, self.kv_heads, self.groups + 2, self.size)
        query, key, value = split.split((self.groups, 1, 1), dim=3)
        query = rotate(query.flatten(2, 3).transpose(1, 2), rope)
        key = rotate(key.squeeze(3).transpose(1, 2), rope).repeat_interleave(self.groups, dim=1)
        value = value.squeeze(3).transpose(1, 2).repeat_interleave(self.groups, dim=1)
        if kept is not None:
            kept.query, kept.key = query, key
        attended = attend(query, key, value, causal=True)
        return self.wo(attended.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.w1 = nn.Linear(shape.text_width, shape.text_hidden, bias=False)
        self.w3 = nn.Linear(shape.text_width, shape.text_hidden, bias=False)
        self.w2 = nn.Linear(shape.text_hidden, shape.text_width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class TextLayer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.text_width, eps=1e-5)
        self.attention = Attention(shape)
        self.ffn_norm = nn.RMSNorm(shape.text_width, eps=1e-5)
        self.feed_forward = FeedForward(shape)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], kept: Kept | None = None) -> Tensor:
        if kept is not None:
            kept.states = x
        x = x + self.attention(self.attention_norm(x), rope, kept)
        return x + self.feed_forward(self.ffn_norm(x))


class Trunk(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(shape.vocabulary, shape.text_width)
        self.layers = nn.ModuleList(TextLayer(shape) for _ in range(shape.text_layers))
        self.norm = nn.RMSNorm(shape.text_width, eps=1e-5)


class LanguageModel(nn.Module):
    """InternLM2 without biases."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.model = Trunk(shape)
        self.output = nn.Linear(shape.text_width, shape.vocabulary, bias=False)
        self.head_size = shape.text_width // shape.text_heads
        residual = (2 * shape.text_layers) ** -0.5
        for layer in self.model.layers:
            for weight in (layer.attention.wo.weight, layer.feed_forward.w2.weight):
                weight.data.mul_(residual)
        nn.init.normal_(self.model.tok_embeddings.weight, std=0.5)
        nn.init.normal_(self.output.weight, std=0.02)

    def hidden(self, embeds: Tensor, *, kept: Sequence[Kept] = ()) -> Tensor:
        """Embeddings [n, P, d] -> normed hidden states [n, P, d].

        `kept` is filled by the counting layer, the linking one and the watched one, which follow each other.
        """
        rope = rotations(embeds.shape[1], self.head_size)
        filled = dict(enumerate(kept, len(self.model.layers) - AFTER_COUNTING))
        for at, layer in enumerate(self.model.layers):
            embeds = layer(embeds, rope, filled.get(at))
        return self.model.norm(embeds)


class Projector(nn.Sequential):
    """`mlp1`: 0 norm, 1 linear, 2 GELU, 3 linear."""

    def __init__(self, shape: Shape) -> None:
        features = 4 * shape.vision_width
        super().__init__(
            nn.LayerNorm(features),
            nn.Linear(features, shape.text_width),
            nn.GELU(),
            nn.Linear(shape.text_width, shape.text_width),
        )


class DemoModel(nn.Module):
    """A whole InternVL. `tiles` are float, normalized [n, 3, 224, 224]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.vision_model = VisionModel(shape.vision_width, shape.vision_layers, shape.vision_heads)
        self.mlp1 = Projector(shape)
        self.language_model = LanguageModel(shape)

    def project(self, features: Tensor) -> Tensor:
        """Patch features [tiles, 256, w] -> image embeddings [tiles, 64, d]."""
        return self.mlp1(pixel_shuffle(features))

    def spliced(self, ids: Tensor, image_embeds: Tensor, image_context_id: int) -> Tensor:
        """Token embeddings [n, P, d] with the image embeddings in the places of their context tokens."""
        embeds = self.language_model.model.tok_embeddings(ids)
        places = (ids == image_context_id).unsqueeze(-1).expand_as(embeds)
        return embeds.masked_scatter(places, image_embeds.to(embeds.dtype))

    def logits(self, ids: Tensor, features: Tensor, image_context_id: int) -> Tensor:
        """[n, P] tokens and [tiles, 256, w] patch features -> [n, P, vocabulary]."""
        embeds = self.spliced(ids, self.project(features), image_context_id)
        return self.language_model.output(self.language_model.hidden(embeds))


def pixel_shuffle(features: Tensor) -> Tensor:
    """[n, g * g, w] -> [n, (g / 2)**2, 4 w]: ps_version v2; a token is a block of 2 x 2 patches, rows inside columns.

    The order of the four follows the authors' `pixel_shuffle`: within a token the row changes slowest.
    """
    count, patches, width = features.shape
    side = round(patches**0.5)
    blocks = features.view(count, side // 2, 2, side // 2, 2, width)
    return blocks.permute(0, 1, 3, 2, 4, 5).reshape(count, patches // 4, 4 * width)


def rotations(length: int, size: int) -> tuple[Tensor, Tensor]:
    """cos and sin [length, size], rounded to bfloat16, the dtype that the checkpoint declares."""
    frequencies = 1 / ROPE_THETA ** (torch.arange(0, size, 2).float() / size)
    angles = torch.arange(length).float()[:, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().bfloat16().float(), angles.sin().bfloat16().float()


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """[n, heads, P, size]: element i turns with element i + size / 2."""
    cos, sin = rope
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)
