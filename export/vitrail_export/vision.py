"""vision_encoder.onnx: uint8 tiles [n, 3, S, S] -> pixel-shuffled features [n, tokens, feature_size].

Normalization is inside the graph, in float32. Position embeddings come at the tile size, so nothing is interpolated.
Algorithm: OpenGVLab/InternVL internvl_chat/internvl/model/internvl_chat/modeling_{intern_vit,internvl_chat}.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import GraphBuilder, nn

from vitrail_export.config import ModelConfig, VisionConfig
from vitrail_export.graph import CONTRIB, Array, Form, Weight, constant, new_graph, vector, whole
from vitrail_export.layers import FLOAT, LayerNorm, RMSNorm, cast, linear

UINT8 = ir.DataType.UINT8


class Embeddings(nn.Module):  # type: ignore[misc]
    """Tiles -> [n, 1 + patches, D]: normalize, one convolution per patch, class token first, positions added."""

    def __init__(self, config: ModelConfig, form: Form) -> None:
        super().__init__()
        vision = config.vision
        self.config, self.form = config, form
        self.pixel_mean = constant(_per_channel(vision.mean))
        self.pixel_std = constant(_per_channel(vision.std))
        self.class_embedding = Weight([1, 1, vision.hidden_size], form.dtype, whole(form.dtype))
        self.position_embedding = Weight(
            [1, 1 + config.tile_grid**2, vision.hidden_size], form.dtype, whole(form.dtype)
        )
        self.patch_embedding = PatchEmbedding(vision, form)

    def forward(self, op: Any, tiles: Any) -> Any:
        pixels = op.Div(op.Sub(op.Cast(tiles, to=FLOAT), self.pixel_mean), self.pixel_std)
        patches = self.patch_embedding(op, cast(op, pixels, FLOAT, self.form.dtype))
        patches = op.Transpose(op.Reshape(patches, [0, 0, -1]), perm=[0, 2, 1])
        count = op.Concat(op.Shape(tiles, start=0, end=1), [1, 1], axis=0)
        return op.Add(
            op.Concat(op.Expand(self.class_embedding, count), patches, axis=1), self.position_embedding
        )


def _per_channel(values: tuple[float, ...]) -> Array:
    """Statistics of pixels in 0..1 -> float32 [1, 3, 1, 1] for pixels in 0..255."""
    return (255 * np.array(values)).astype(np.float32).reshape(1, 3, 1, 1)


class PatchEmbedding(nn.Module):  # type: ignore[misc]
    def __init__(self, vision: VisionConfig, form: Form) -> None:
        super().__init__()
        size = vision.patch_size
        self.stride = [size, size]
        self.weight = Weight([vision.hidden_size, 3, size, size], form.dtype, whole(form.dtype))
        self.bias = vector(vision.hidden_size, form.dtype)

    def forward(self, op: Any, x: Any) -> Any:
        return op.Conv(x, self.weight, self.bias, kernel_shape=self.stride, strides=self.stride)


class Attention(nn.Module):  # type: ignore[misc]
    def __init__(self, vision: VisionConfig, form: Form) -> None:
        super().__init__()
        self.vision, self.form = vision, form
        size = vision.hidden_size
        self.qkv = linear(size, 3 * size, form=form, bias=vision.qkv_bias)
        if vision.qk_normalization:
            self.q_norm = RMSNorm(size, eps=vision.eps, form=form)
            self.k_norm = RMSNorm(size, eps=vision.eps, form=form)
        self.proj = linear(size, size, form=form, bias=True)

    def forward(self, op: Any, x: Any) -> Any:
        q, k, v = op.Split(self.qkv(op, x), axis=-1, num_outputs=3, _outputs=3)
        if self.vision.qk_normalization:
            q, k = self.q_norm(op, q), self.k_norm(op, k)
        return self.proj(op, self.attend(op, q, k, v))

    def attend(self, op: Any, q: Any, k: Any, v: Any) -> Any:
        heads = self.vision.heads
        scale = (self.vision.hidden_size // heads) ** -0.5
        if self.form.dialect == "ort":
            return op.MultiHeadAttention(q, k, v, num_heads=heads, scale=scale, _domain=CONTRIB, _version=1)
        return op.Attention(q, k, v, q_num_heads=heads, kv_num_heads=heads, scale=scale)


class MLP(nn.Module):  # type: ignore[misc]
    def __init__(self, vision: VisionConfig, form: Form) -> None:
        super().__init__()
        self.fc1 = linear(vision.hidden_size, vision.intermediate_size, form=form, bias=True)
        self.fc2 = linear(vision.intermediate_size, vision.hidden_size, form=form, bias=True)

    def forward(self, op: Any, x: Any) -> Any:
        return self.fc2(op, op.Gelu(self.fc1(op, x)))


class Layer(nn.Module):  # type: ignore[misc]
    """Pre-norm attention and MLP, each scaled per channel before it joins the stream."""

    def __init__(self, vision: VisionConfig, form: Form) -> None:
        super().__init__()
        norm = LayerNorm if vision.norm_type == "layer_norm" else RMSNorm
        self.norm1 = norm(vision.hidden_size, eps=vision.eps, form=form)
        self.attn = Attention(vision, form)
        self.ls1 = vector(vision.hidden_size, form.dtype)
        self.norm2 = norm(vision.hidden_size, eps=vision.eps, form=form)
        self.mlp = MLP(vision, form)
        self.ls2 = vector(vision.hidden_size, form.dtype)

    def forward(self, op: Any, x: Any) -> Any:
        x = op.Add(x, op.Mul(self.attn(op, self.norm1(op, x)), self.ls1))
        return op.Add(x, op.Mul(self.mlp(op, self.norm2(op, x)), self.ls2))


class VisionEncoder(Embeddings):
    def __init__(self, config: ModelConfig, form: Form) -> None:
        super().__init__(config, form)
        self._set_name("vision")
        self.layers = nn.ModuleList([Layer(config.vision, form) for _ in range(config.vision_layers)])

    def forward(self, op: Any, tiles: Any) -> Any:
        x = super().forward(op, tiles)
        for layer in self.layers:
            x = layer(op, x)
        patches = op.Slice(x, [1], [np.iinfo(np.int64).max], [1])
        return pixel_shuffle(op, patches, self.config)


def pixel_shuffle(op: Any, x: Any, config: ModelConfig) -> Any:
    """[n, side * side, D] -> [n, tokens, D * fold^2]: each fold x fold square of patches becomes one token."""
    side, fold, size = config.tile_grid, config.shuffle, config.vision.hidden_size
    out = side // fold
    x = op.Reshape(x, [0, side, out, size * fold])
    x = op.Reshape(op.Transpose(x, perm=[0, 2, 1, 3]), [0, out, out, size * fold * fold])
    if config.ps_version == "v2":
        x = op.Transpose(x, perm=[0, 2, 1, 3])
    return op.Reshape(x, [0, config.tokens_per_tile, config.feature_size])


def build_vision_encoder(config: ModelConfig, form: Form) -> GraphBuilder:
    builder, op = new_graph("vision_encoder")
    tiles = builder.input("tiles", UINT8, ["tiles", 3, config.tile_size, config.tile_size])
    features = VisionEncoder(config, form)(op, tiles)
    builder.add_output(cast(op, features, form.dtype, form.port_dtype), "features")
    return builder
