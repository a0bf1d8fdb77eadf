"""Trained weights -> a checkpoint in the authors' original layout, bfloat16, with its configuration and tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from demo.recipe import tokenizer
from demo.recipe.model import ROPE_THETA, DemoModel, Shape
from demo.recipe.questions import TEMPLATE_SENTENCES
from demo.recipe.render.dense import TILE
from demo.recipe.sequence import image_context_id
from demo.recipe.state import load
from demo.recipe.tokenizer import CONTRACT
from demo.recipe.vision import PATCH
from vitrail_export.config import ModelConfig, TextConfig, VisionConfig
from vitrail_export.config_write import write_config

DTYPE = torch.bfloat16
JOINT, VISION = "demo.", "vision_model."


def model_config(shape: Shape, eos_id: int) -> ModelConfig:
    """The configuration of InternVL2-2B with the sizes of `shape`."""
    return ModelConfig(
        layout="original",
        architecture="InternVLChatModel",
        vision=_vision_config(shape),
        text=_text_config(shape),
        template=CONTRACT.template,
        system=CONTRACT.system,
        tile_size=TILE,
        downsample_ratio=0.5,
        select_layer=-1,
        ps_version="v2",
        max_tiles=CONTRACT.max_tiles,
        thumbnail=CONTRACT.thumbnail,
        eos_ids=(eos_id,),
    )


def _vision_config(shape: Shape) -> VisionConfig:
    return VisionConfig(
        hidden_size=shape.vision_width,
        layers=shape.vision_layers,
        heads=shape.vision_heads,
        intermediate_size=4 * shape.vision_width,
        patch_size=PATCH,
        image_size=TILE,
        eps=1e-6,
        norm_type="layer_norm",
        qk_normalization=False,
        qkv_bias=True,
    )


def _text_config(shape: Shape) -> TextConfig:
    return TextConfig(
        architecture="internlm2",
        hidden_size=shape.text_width,
        layers=shape.text_layers,
        heads=shape.text_heads,
        kv_heads=shape.text_kv_heads,
        head_dim=shape.text_width // shape.text_heads,
        intermediate_size=shape.text_hidden,
        eps=1e-5,
        rope_theta=ROPE_THETA,
        rope_dtype="bfloat16",
        context_tokens=shape.tokens,
        vocab_size=shape.vocabulary,
        qkv_bias=False,
        o_bias=False,
        qk_norm=False,
        tie_word_embeddings=False,
    )


def convert(model: DemoModel, directory: Path) -> None:
    """Write model.safetensors, config.json and its neighbours, and the tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.detach().to(DTYPE).contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)
    built = tokenizer.build(TEMPLATE_SENTENCES)
    tokenizer.write(built, directory)
    config = model_config(model.shape, built.token_to_id("<|im_end|>"))
    write_config(config, directory, image_context_id=image_context_id())


def trained(directory: Path) -> DemoModel:
    """The model of stage 2, or where that was not trained yet the two halves of stages 0 and 1.

    Raises FileNotFoundError where nothing was trained.
    """
    model = DemoModel(Shape())
    if (directory / "joint.pt").is_file():
        model.load_state_dict(_part(directory / "joint.pt", JOINT))
        return model
    if not (directory / "text.pt").is_file() or not (directory / "vision.pt").is_file():
        raise FileNotFoundError(f"no trained weights in '{directory}'; run: make demo-train")
    model.load_state_dict(_part(directory / "text.pt", ""))
    model.vision_model.load_state_dict(_part(directory / "vision.pt", VISION))
    return model


def _part(path: Path, prefix: str) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = load(path)["model"]
    return {name[len(prefix) :]: each for name, each in kept.items() if name.startswith(prefix)}
