"""The vision tower (InternViT's layout), and a start that already looks at neighbouring patches.

Plain random attention needs tens of thousands of tiles before it finds a patch's neighbours. Here positions start as
sines and cosines, and each head's query is its position moved by a step, so that attention begins like a convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from demo.recipe.attend import attend

PATCH, GRID = 14, 16
WAVES = 8
POSITION_FEATURES = 4 * WAVES
FOCUS = 1.6
STEPS = (
    ((-1, 0), (1, 0), (0, 0)),
    ((0, -1), (0, 1), (0, 0)),
    ((-1, 0), (1, 0), (0, 0)),
    ((-2, 0), (2, 0), (0, 0)),
)


class Embeddings(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.patch_embedding = nn.Conv2d(3, width, PATCH, PATCH)
        self.position_embedding = nn.Parameter(torch.randn(1, 1 + GRID * GRID, width) * 0.02)
        nn.init.normal_(self.patch_embedding.weight, std=0.6 * (3 * PATCH * PATCH) ** -0.5)
        self.position_embedding.data[0, 1:, :POSITION_FEATURES] = waves()

    def forward(self, tiles: Tensor) -> Tensor:
        """A convolution whose stride is its size is a matrix product, which is several times faster here."""
        count = tiles.shape[0]
        blocks = (
            tiles.view(count, 3, GRID, PATCH, GRID, PATCH)
            .permute(0, 2, 4, 1, 3, 5)
            .reshape(count, GRID * GRID, -1)
        )
        patches = functional.linear(blocks, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)
        return (
            torch.cat([self.class_embedding.expand(count, 1, -1).to(patches.dtype), patches], 1)
            + self.position_embedding
        )


class VisionAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        count, length, width = x.shape
        query, key, value = self.qkv(x).view(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = attend(query, key, value, causal=False)
        return self.proj(attended.transpose(1, 2).reshape(count, length, width))


class VisionMlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class VisionLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = VisionAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = VisionMlp(width)
        self.ls1 = nn.Parameter(torch.ones(width))
        self.ls2 = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1 * self.attn(self.norm1(x))
        return x + self.ls2 * self.mlp(self.norm2(x))


class Encoder(nn.Module):
    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(width, heads) for _ in range(layers))


class VisionModel(nn.Module):
    """Normalized tiles [n, 3, 224, 224] -> features of patches [n, 256, width], the class token dropped."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.embeddings = Embeddings(width)
        self.encoder = Encoder(width, layers, heads)
        for layer, steps in zip(self.encoder.layers, STEPS, strict=False):
            look_at_neighbours(layer.attn, steps)

    def forward(self, tiles: Tensor) -> Tensor:
        x = self.embeddings(tiles)
        for layer in self.encoder.layers:
            x = layer(x)
        return x[:, 1:]


def frequencies() -> Tensor:
    return 2.0 * 0.65 ** torch.arange(WAVES)


def waves() -> Tensor:
    """[256, 32]: for each frequency the cosine and sine of the column, then of the row."""
    place = torch.arange(GRID)[:, None] * frequencies()
    turning = torch.stack([place.cos(), place.sin()], -1).flatten(1)
    columns, rows = turning[None].expand(GRID, -1, -1), turning[:, None].expand(-1, GRID, -1)
    return torch.cat([columns, rows], -1).reshape(GRID * GRID, POSITION_FEATURES)


@torch.no_grad()
def look_at_neighbours(attention: VisionAttention, steps: tuple[tuple[int, int], ...]) -> None:
    """Each head's query is the position moved by its step (columns, rows); keys are positions as they are."""
    width = attention.proj.in_features
    size = width // attention.heads
    for head, step in enumerate(steps[: attention.heads]):
        query = attention.qkv.weight[head * size : head * size + POSITION_FEATURES]
        key = attention.qkv.weight[width + head * size : width + head * size + POSITION_FEATURES]
        for matrix in (query, key):
            matrix.mul_(0.2)
        query[:, :POSITION_FEATURES] += FOCUS * moved(step)
        key[:, :POSITION_FEATURES] += FOCUS * torch.eye(POSITION_FEATURES)


def moved(step: tuple[int, int]) -> Tensor:
    """[32, 32]: turns the waves of a place into those of the place a step away."""
    blocks = []
    for distance in step:
        for angle in (frequencies() * distance).tolist():
            c, s = torch.tensor(angle).cos(), torch.tensor(angle).sin()
            blocks.append(torch.tensor([[c, -s], [s, c]]))
    return torch.block_diag(*blocks)
