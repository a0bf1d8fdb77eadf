"""The exported graphs against transformers' own InternVL, on random models of every kind that both know."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from tests.export.test_reference import TWINS, normalized, random_model

from vitrail_export.checkpoint import Checkpoint
from vitrail_export.decoder import build_decoder
from vitrail_export.graph import Form, save_graph
from vitrail_export.projector import build_projector
from vitrail_export.vision import build_vision_encoder

IMAGE = 210


def sessions(checkpoint, out, dialect):
    form, config = Form(dialect, ir.DataType.FLOAT), checkpoint.config
    graphs = {
        "vision": build_vision_encoder(config, form),
        "projector": build_projector(config, form),
        "decoder": build_decoder(config.text, form),
    }
    for name, graph in graphs.items():
        save_graph(graph, checkpoint, out / f"{name}.onnx", lambda *_: None)
    return [ort.InferenceSession(out / f"{name}.onnx", providers=["CPUExecutionProvider"]) for name in graphs]


def decode(session, embeds, text, dialect):
    """Logits of every position, in one pass over an empty cache."""
    length = embeds.shape[1]
    empty = np.zeros((1, text.kv_heads, length, text.head_dim), np.float32)
    caches = {f"past.{layer}.{kind}": empty for layer in range(text.layers) for kind in ("key", "value")}
    feeds = {
        "inputs_embeds": embeds,
        **(
            {"past_lengths": np.zeros(1, np.int32)}
            if dialect == "standard"
            else {
                "last_positions": np.array([length - 1], np.int32),
                "total_length": np.array(length, np.int32),
            }
        ),
        "logit_positions": np.arange(length),
        **caches,
    }
    return session.run(["logits"], feeds)[0]


@pytest.mark.parametrize("dialect", ["ort", "standard"])
@pytest.mark.parametrize("twin", TWINS)
def test_logits_of_the_graphs_are_those_of_transformers(twin, dialect, tmp_path):
    model = random_model(*TWINS[twin])
    model.save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    vision, projector, decoder = sessions(checkpoint, tmp_path, dialect)
    tiles = np.random.default_rng(0).integers(0, 256, (2, 3, 56, 56), np.uint8)
    ids = np.array([3, 5, *[IMAGE] * 2 * checkpoint.config.tokens_per_tile, 7, 11, 13])
    with torch.inference_mode():
        expected = (
            model(input_ids=torch.tensor([ids.tolist()]), pixel_values=normalized(tiles)).logits[0].numpy()
        )
    images = projector.run(None, {"features": vision.run(None, {"tiles": tiles})[0]})[0]
    embeds = checkpoint.load("text.embed_tokens.weight")[ids]
    embeds[ids == IMAGE] = images.reshape(-1, embeds.shape[1])
    np.testing.assert_allclose(
        decode(decoder, embeds[None], checkpoint.config.text, dialect), expected, atol=5e-4
    )
