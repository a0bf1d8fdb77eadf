"""decoder.onnx: one step of the language model over a ragged batch, with the KV cache written in place.

Two dialects from one set of modules. `ort`: GroupQueryAttention (rotary inside), SkipSimplifiedLayerNormalization and
MatMulNBits. `standard`: RotaryEmbedding, TensorScatter and Attention of opset 24 with an explicit mask.
Algorithms: OpenGVLab/InternVL internvl_chat/internvl/model/internlm2, transformers models/{qwen2,llama}.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes  # noqa: F401  teaches numpy the name bfloat16
import numpy as np
import onnx_ir as ir
from onnxscript import GraphBuilder, nn

from vitrail_export.config import TextConfig
from vitrail_export.graph import CONTRIB, CacheScales, Fill, Form, Weight, constant, new_graph, vector
from vitrail_export.layers import (
    CodedInt8Linear,
    RMSNorm,
    cast,
    linear,
    norm_dtype,
    rms_normalize,
    row_codes,
)

FLOAT, INT32, INT64 = ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64
LENGTHS: dict[str, dict[str, list[Any]]] = {
    # As GroupQueryAttention takes them: computed inside, they would cross the bus, which no CUDA graph can hold.
    "ort": {"last_positions": ["batch"], "total_length": []},
    "standard": {"past_lengths": ["batch"]},
}


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What every attention layer shares in one step: where the new tokens go and how they are rotated."""

    cos: Any
    sin: Any
    lengths: Any  # ort: last_positions [B] int32; standard: past_lengths [B] int64
    total: Any = None  # ort: total_length, int32 scalar
    past: Any = None  # of a graph that reads prompts: [1] int64
    positions: Any = None  # of the same, and standard: [B, S] int64
    mask: Any = None  # standard: bool [B, 1, S, capacity]


class AddNorm(nn.Module):  # type: ignore[misc]
    """(stream, what the last sublayer added or None) -> (normalized sum, sum)."""

    def __init__(self, size: int, *, eps: float, form: Form) -> None:
        super().__init__()
        self.weight = vector(size, norm_dtype(form))
        self.eps, self.form = eps, form

    def forward(self, op: Any, x: Any, delta: Any | None) -> tuple[Any, Any]:
        if delta is not None and self.form.dialect == "ort":
            normed, _, _, total = op.SkipSimplifiedLayerNormalization(
                x, delta, self.weight, epsilon=self.eps, _domain=CONTRIB, _version=1, _outputs=4
            )
            return normed, total
        total = x if delta is None else op.Add(x, delta)
        return rms_normalize(op, self.form, total, self.weight, eps=self.eps), total


class Attention(nn.Module):  # type: ignore[misc]
    def __init__(self, config: TextConfig, form: Form) -> None:
        super().__init__()
        self.config, self.form = config, form
        heads, kv_heads = config.heads * config.head_dim, config.kv_heads * config.head_dim
        apart = form.of("v") != form
        stacked = ("q", "k") if apart else ("q", "k", "v")
        self.qkv = self.projection(heads + kv_heads * (len(stacked) - 1), stacked, form)
        self.v = self.projection(kv_heads, ("v",), form.of("v")) if apart else None
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, eps=config.eps, form=form)
            self.k_norm = RMSNorm(config.head_dim, eps=config.eps, form=form)
        self.o = linear(config.heads * config.head_dim, config.hidden_size, form=form, bias=config.o_bias)
        if form.cache is not None:
            channels, fill = config.kv_heads * config.head_dim, _cache_scales(form.cache)
            self.key_step, self.value_step = Weight([channels], FLOAT, fill), Weight([channels], FLOAT, fill)

    def projection(self, outputs: int, parts: tuple[str, ...], form: Form) -> nn.Module:
        return linear(self.config.hidden_size, outputs, form=form, bias=self.config.qkv_bias, parts=parts)

    def forward(self, op: Any, x: Any, cache: tuple[Any, Any], step: StepInputs) -> tuple[Any, Any, Any]:
        if self.form.dialect == "standard":
            y, key, value = self.attend_standard(op, *self.split(op, x), cache, step)
        elif self.form.cache is not None and self.form.reads:
            y, key, value = self.attend_reading(op, *self.split(op, x), cache, step)
        elif self.config.qk_norm or self.v is not None:
            y, key, value = self.attend_fused(op, self.split(op, x), cache, step)
        else:
            y, key, value = self.attend_fused(op, (self.qkv(op, x), None, None), cache, step)
        return self.o(op, y), key, value

    def split(self, op: Any, x: Any) -> tuple[Any, Any, Any]:
        """[B, S, hidden_size] -> q, k, v [B, S, (heads or kv_heads) * head_dim], q and k normalized per head where the
        model does so.
        """
        size = self.config.head_dim
        heads, kv_heads = self.config.heads * size, self.config.kv_heads * size
        if self.v is None:
            q, k, v = op.Split(self.qkv(op, x), [heads, kv_heads, kv_heads], axis=-1, _outputs=3)
        else:
            (q, k), v = op.Split(self.qkv(op, x), [heads, kv_heads], axis=-1, _outputs=2), self.v(op, x)
        if self.config.qk_norm:
            q = op.Reshape(self.q_norm(op, op.Reshape(q, [0, 0, -1, size])), [0, 0, heads])
            k = op.Reshape(self.k_norm(op, op.Reshape(k, [0, 0, -1, size])), [0, 0, kv_heads])
        return q, k, v

    def attend_fused(
        self, op: Any, qkv: tuple[Any, Any, Any], cache: tuple[Any, Any], step: StepInputs
    ) -> Any:
        inputs = [*qkv, *cache, step.lengths, step.total, step.cos, step.sin]
        attributes: dict[str, Any] = {}
        if self.form.cache is not None:
            inputs += [None, None, None, self.key_step, self.value_step]
            attributes = {
                "k_quant_type": "PER_CHANNEL",
                "v_quant_type": "PER_CHANNEL",
                "kv_cache_bit_width": 8,
            }
        return op.GroupQueryAttention(
            *inputs,
            num_heads=self.config.heads,
            kv_num_heads=self.config.kv_heads,
            scale=self.config.head_dim**-0.5,
            do_rotary=1,
            **attributes,
            _domain=CONTRIB,
            _version=1,
            _outputs=3,
        )

    def attend_reading(
        self, op: Any, q: Any, k: Any, v: Any, cache: tuple[Any, Any], step: StepInputs
    ) -> tuple[Any, Any, Any]:
        """A chunk of one row over an int8 cache whose past becomes float before: GroupQueryAttention reads an int8 cache
        several times slower. New keys and values are rounded first, so that each chunk sees what later ones will.
        """
        heads, kv_heads, size = self.config.heads, self.config.kv_heads, self.config.head_dim
        q = op.RotaryEmbedding(q, step.cos, step.sin, step.positions, num_heads=heads)
        k = op.RotaryEmbedding(k, step.cos, step.sin, step.positions, num_heads=kv_heads)
        zero = op.Constant(value=ir.tensor(np.array(0, np.int8)))
        new, past, written = [], [], []
        for x, held, scale in zip((k, v), cache, (self.key_step, self.value_step), strict=True):
            # QuantizeLinear with a scale of each channel takes ten times as long.
            codes = op.QuantizeLinear(op.Div(x, scale), 1.0, zero)
            new.append(op.Mul(op.Cast(codes, to=FLOAT), scale))
            cached = op.Cast(op.Slice(held, [0], step.past, [2]), to=FLOAT)
            past.append(op.Mul(cached, op.Reshape(scale, [1, kv_heads, 1, size])))
            written.append(op.TensorScatter(held, _split_heads(op, codes, size), step.past, axis=2))
        y, _, _ = op.GroupQueryAttention(
            q,
            *new,
            *past,
            step.lengths,
            step.total,
            num_heads=heads,
            kv_num_heads=kv_heads,
            scale=size**-0.5,
            _domain=CONTRIB,
            _version=1,
            _outputs=3,
        )
        return y, *written

    def attend_standard(
        self, op: Any, q: Any, k: Any, v: Any, cache: tuple[Any, Any], step: StepInputs
    ) -> tuple[Any, Any, Any]:
        size = self.config.head_dim
        q, k, v = (_split_heads(op, x, size) for x in (q, k, v))
        q = op.RotaryEmbedding(q, step.cos, step.sin, step.positions)
        k = op.RotaryEmbedding(k, step.cos, step.sin, step.positions)
        key = op.TensorScatter(cache[0], k, step.lengths, axis=2)
        value = op.TensorScatter(cache[1], v, step.lengths, axis=2)
        y = op.Attention(q, key, value, step.mask, scale=size**-0.5)
        merged = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, self.config.heads * size])
        return merged, key, value


def _cache_scales(cache: CacheScales) -> Fill:
    return lambda name, _source: [cache.cache_scales(name.removesuffix("_step"))]


def _split_heads(op: Any, x: Any, size: int) -> Any:
    """[B, S, heads * size] -> [B, heads, S, size]"""
    return op.Transpose(op.Reshape(x, [0, 0, -1, size]), perm=[0, 2, 1, 3])


class MLP(nn.Module):  # type: ignore[misc]
    def __init__(self, config: TextConfig, form: Form) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.gate_up = linear(size, 2 * inner, form=form, bias=False, parts=("gate", "up"))
        self.down = linear(inner, size, form=form.of("down"), bias=False)

    def forward(self, op: Any, x: Any) -> Any:
        gate, up = op.Split(self.gate_up(op, x), axis=-1, num_outputs=2, _outputs=2)
        return self.down(op, op.Mul(silu(op, gate), up))


class RowInt8MLP(nn.Module):  # type: ignore[misc]
    """The same of matrices in int8 with a scale of each row. Rows come to `down` without the step of `up`, which changes
    none of their codes: the widest tensors are passed over once less, and never split.
    """

    def __init__(self, config: TextConfig, form: Form) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.gate = CodedInt8Linear(size, inner, form=form, bias=False)
        self.up = CodedInt8Linear(size, inner, form=form, bias=False)
        self.down = CodedInt8Linear(inner, size, form=form, bias=False)

    def forward(self, op: Any, x: Any) -> Any:
        codes, step = row_codes(op, x)
        gate = op.Mul(self.gate(op, codes), step)
        inner, inner_step = row_codes(op, op.Mul(silu(op, gate), self.up(op, codes)))
        return op.Mul(self.down(op, inner), op.Mul(inner_step, step))


def mlp(config: TextConfig, form: Form) -> nn.Module:
    kind = RowInt8MLP if form.int8 == form.of("down").int8 == "row" else MLP
    return kind(config, form)


def silu(op: Any, x: Any) -> Any:
    return op.Mul(x, op.Sigmoid(x))


class Layer(nn.Module):  # type: ignore[misc]
    """(stream, pending delta) -> (stream, pending delta): the sum is left to the next norm, which fuses it."""

    def __init__(self, config: TextConfig, form: Form) -> None:
        super().__init__()
        self.input_norm = AddNorm(config.hidden_size, eps=config.eps, form=form)
        self.attn = Attention(config, form)
        self.post_norm = AddNorm(config.hidden_size, eps=config.eps, form=form)
        self.mlp = mlp(config, form)

    def forward(
        self, op: Any, x: Any, delta: Any, cache: tuple[Any, Any], step: StepInputs
    ) -> tuple[Any, Any, tuple[Any, Any]]:
        h, x = self.input_norm(op, x, delta)
        delta, key, value = self.attn(op, h, cache, step)
        h, x = self.post_norm(op, x, delta)
        return x, self.mlp(op, h), (key, value)


class Decoder(nn.Module):  # type: ignore[misc]
    def __init__(self, config: TextConfig, form: Form) -> None:
        super().__init__("text")
        self.config, self.form = config, form
        self.rope_cos = _rope_table(config, form, np.cos)
        self.rope_sin = _rope_table(config, form, np.sin)
        self.layers = nn.ModuleList(
            [Layer(config, form.in_layer(at, config.layers)) for at in range(config.layers)]
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.eps, form=form)
        self.lm_head = linear(config.hidden_size, config.vocab_size, form=form.of("lm_head"), bias=False)

    def forward(
        self, op: Any, x: Any, lengths: tuple[Any, ...], logit_positions: Any, caches: list[tuple[Any, Any]]
    ) -> tuple[Any, list[tuple[Any, Any]]]:
        step = self.step_inputs(op, x, lengths, caches[0][0])
        delta, present = None, []
        for layer, cache in zip(self.layers, caches, strict=True):
            x, delta, written = layer(op, x, delta, cache, step)
            present.append(written)
        wanted = op.Gather(
            op.Reshape(op.Add(x, delta), [-1, self.config.hidden_size]), logit_positions, axis=0
        )
        logits = self.lm_head(op, self.norm(op, wanted))
        return (op.Cast(logits, to=FLOAT) if self.form.half else op.Identity(logits)), present

    def step_inputs(self, op: Any, x: Any, lengths: tuple[Any, ...], cache: Any) -> StepInputs:
        if self.form.dialect == "ort":
            last_positions, total = lengths
            step = StepInputs(cos=self.rope_cos, sin=self.rope_sin, lengths=last_positions, total=total)
            if not self.form.reads:
                return step
            past = op.Sub(op.Cast(last_positions, to=INT64), op.Sub(op.Shape(x, start=1, end=2), [1]))
            return replace(step, past=past, positions=_positions(op, x, past))
        past = op.Cast(lengths[0], to=INT64)
        positions = _positions(op, x, past)
        capacity = op.Range(0, op.Squeeze(op.Shape(cache, start=2, end=3)), 1)
        mask = op.LessOrEqual(capacity, op.Unsqueeze(positions, [1, 3]))
        return StepInputs(cos=self.rope_cos, sin=self.rope_sin, lengths=past, positions=positions, mask=mask)


def _positions(op: Any, x: Any, past: Any) -> Any:
    """Of new tokens x [B, S, d] behind past [B]: [B, S]."""
    new = op.Squeeze(op.Shape(x, start=1, end=2))
    return op.Add(op.Unsqueeze(past, [1]), op.Unsqueeze(op.Range(0, new, 1), [0]))


def _rope_table(config: TextConfig, form: Form, function: Any) -> Weight:
    """[context, head_dim / 2] in float32 arithmetic as the reference computes it: plain theta, no scaling.

    The authors' models hold these tables in the checkpoint's dtype, so they are rounded to `rope_dtype` first.
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    frequencies = np.float32(1) / np.float32(config.rope_theta) ** exponents
    angles = np.arange(config.context_tokens, dtype=np.float32)[:, None] * frequencies
    return constant(function(angles).astype(config.rope_dtype).astype(form.dtype.numpy()))


def build_decoder(config: TextConfig, form: Form) -> GraphBuilder:
    """The graph of vitrail.manifest.DecoderContract."""
    builder, op = new_graph("decoder")
    kv_shape = ["batch", config.kv_heads, "capacity", config.head_dim]
    x = builder.input("inputs_embeds", form.port_dtype, ["batch", "new", config.hidden_size])
    lengths = tuple(builder.input(name, INT32, shape) for name, shape in LENGTHS[form.dialect].items())
    logit_positions = builder.input("logit_positions", INT64, ["wanted"])
    caches = [
        (
            builder.input(f"past.{i}.key", form.cache_dtype, kv_shape),
            builder.input(f"past.{i}.value", form.cache_dtype, kv_shape),
        )
        for i in range(config.layers)
    ]
    logits, present = Decoder(config, form)(
        op, cast(op, x, form.port_dtype, form.dtype), lengths, logit_positions, caches
    )
    _output(builder, logits, "logits", FLOAT, ["wanted", config.vocab_size])
    for i, (key, value) in enumerate(present):
        _output(builder, key, f"present.{i}.key", form.cache_dtype, kv_shape)
        _output(builder, value, f"present.{i}.value", form.cache_dtype, kv_shape)
    return builder


def _output(builder: GraphBuilder, value: Any, name: str, dtype: ir.DataType, shape: list[Any]) -> None:
    value.dtype, value.shape = dtype, ir.Shape(shape)
    builder.add_output(value, name)
