"""projector.onnx: pixel-shuffled features [n, tokens, feature_size] -> the language model's space [n, tokens, d].

Algorithm: OpenGVLab/InternVL internvl_chat/internvl/model/internvl_chat/modeling_internvl_chat.py, `mlp1`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from onnxscript import GraphBuilder, nn

from vitrail_export.config import ModelConfig
from vitrail_export.graph import Form, new_graph
from vitrail_export.layers import LayerNorm, cast, linear

NORM_EPS = 1e-5  # torch's default, which the reference leaves as it is


class Projector(nn.Module):  # type: ignore[misc]
    def __init__(self, config: ModelConfig, form: Form) -> None:
        super().__init__("projector")
        size = config.text.hidden_size
        self.norm = LayerNorm(config.feature_size, eps=NORM_EPS, form=form)
        self.fc1 = linear(config.feature_size, size, form=form, bias=True, parts=("fc1",))
        self.fc2 = linear(size, size, form=form, bias=True, parts=("fc2",))

    def forward(self, op: Any, x: Any) -> Any:
        return self.fc2(op, op.Gelu(self.fc1(op, self.norm(op, x))))


def build_projector(config: ModelConfig, form: Form) -> GraphBuilder:
    """Beside an encoder in int8 its weights are int8 by block: it costs a hundredth of the encoder, so only memory counts."""
    form = replace(form, int8=None)
    builder, op = new_graph("projector")
    x = builder.input("features", form.port_dtype, ["tiles", config.tokens_per_tile, config.feature_size])
    y = Projector(config, form)(op, cast(op, x, form.port_dtype, form.dtype))
    builder.add_output(cast(op, y, form.dtype, form.port_dtype), "embeds")
    return builder
