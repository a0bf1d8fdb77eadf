"""config.json of either layout -> ModelConfig. Everything that is not supported is refused by name.

`original` is the authors' layout (InternVLChatModel; OpenGVLab/InternVL, internvl_chat/internvl/model), `hf` that of
transformers (InternVLForConditionalGeneration). A field that a file leaves out has its configuration class's default:
in the original layout those of the 6B vision tower, so that nothing is guessed from a model's name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from vitrail.errors import CheckpointError
from vitrail.manifest import TemplateName
from vitrail_export.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Layout,
    ModelConfig,
    NormType,
    PixelShuffle,
    Rgb,
    RopeDType,
    TextArchitecture,
    TextConfig,
    VisionConfig,
)
from vitrail_export.fields import Fields, read_fields, read_optional_fields

MOST_TILES, MOST_LAYERS = 40, 1000
ARCHITECTURES: dict[str, Layout] = {
    "InternVLChatModel": "original",
    "InternVLForConditionalGeneration": "hf",
}
TEXT_ARCHITECTURES: dict[str, TextArchitecture] = {
    "InternLM2ForCausalLM": "internlm2",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "LlamaForCausalLM": "llama",
}


def read_config(directory: Path) -> ModelConfig:
    """Parse a checkpoint's config.json, with preprocessor_config.json and generation_config.json where present.

    Raises CheckpointError naming the field, its value and what is supported.
    """
    root = read_fields(directory / "config.json")
    architecture = _architecture(root)
    read = _read_original if ARCHITECTURES[architecture] == "original" else _read_hf
    config = read(root, directory, architecture)
    _check_consistency(config)
    return config


def _architecture(root: Fields) -> str:
    names = root.values.get("architectures") or []
    if isinstance(names, list) and len(names) == 1 and names[0] in ARCHITECTURES:
        return str(names[0])
    raise root.refused("architectures", ", ".join(ARCHITECTURES))


def _read_original(root: Fields, directory: Path, architecture: str) -> ModelConfig:
    for name in ("use_backbone_lora", "use_llm_lora"):
        root.choice(name, 0, [0])
    root.choice("pad2square", False, [False])
    _refuse_quantized(root)
    vision, text = _vision_original(root.section("vision_config"), directory), root.section("llm_config")
    dynamic = root.flag("dynamic_image_size", default=False)
    return ModelConfig(
        layout="original",
        architecture=architecture,
        vision=vision,
        text=_text(text, _text_architecture(text), root, tied=False),
        template=root.choice("template", "", get_args(TemplateName)),  # type: ignore[arg-type]
        system=_system(root),
        tile_size=root.side("force_image_size", vision.image_size),
        downsample_ratio=root.positive("downsample_ratio", 0.5),
        select_layer=root.integer("select_layer", -1),
        ps_version=root.choice("ps_version", "v1", get_args(PixelShuffle)),
        max_tiles=_tile_limit(root, default=6) if dynamic else 1,
        thumbnail=root.flag("use_thumbnail", default=False),
        eos_ids=_eos_ids(text, directory),
    )


def _read_hf(root: Fields, directory: Path, architecture: str) -> ModelConfig:
    root.choice("projector_hidden_act", "gelu", ["gelu"])
    root.choice("vision_feature_select_strategy", "default", ["default"])
    _refuse_quantized(root)
    vision, text = _vision_hf(root.section("vision_config"), directory), root.section("text_config")
    tied = root.flag("tie_word_embeddings", default=True)
    tiling = _preprocessor(directory)
    return ModelConfig(
        layout="hf",
        architecture=architecture,
        vision=vision,
        text=_text(text, text.choice("model_type", "qwen2", get_args(TextArchitecture)), root, tied=tied),
        template=root.choice("template", "internvl2_5", get_args(TemplateName)),
        system=_system(root),
        tile_size=vision.image_size,
        downsample_ratio=root.positive("downsample_ratio", 0.5),
        select_layer=root.integer("vision_feature_layer", -1),
        ps_version="v2",
        max_tiles=min(tiling.count("max_patches", 12), MOST_TILES),
        thumbnail=True,
        eos_ids=_eos_ids(text, directory),
    )


def _vision_original(fields: Fields, directory: Path) -> VisionConfig:
    fields.choice("num_channels", 3, [3])
    mean, std = _normalization(directory)
    return VisionConfig(
        hidden_size=fields.count("hidden_size", 3200),
        layers=fields.count("num_hidden_layers", 48),
        heads=fields.count("num_attention_heads", 25),
        intermediate_size=fields.count("intermediate_size", 12800),
        patch_size=fields.side("patch_size", 14),
        image_size=fields.side("image_size", 224),
        eps=fields.positive("layer_norm_eps", 1e-6),
        norm_type=fields.choice("norm_type", "rms_norm", get_args(NormType)),
        qk_normalization=fields.flag("qk_normalization", default=True),
        qkv_bias=fields.flag("qkv_bias", default=False),
        hidden_act=fields.choice("hidden_act", "gelu", ["gelu"]),
        mean=mean,
        std=std,
    )


def _vision_hf(fields: Fields, directory: Path) -> VisionConfig:
    fields.choice("num_channels", 3, [3])
    fields.choice("use_absolute_position_embeddings", True, [True])
    # Without mean pooling the tower ends in one more norm.
    fields.choice("use_mean_pooling", True, [True])
    mean, std = _normalization(directory)
    return VisionConfig(
        hidden_size=fields.count("hidden_size", 1024),
        layers=fields.count("num_hidden_layers", 24),
        heads=fields.count("num_attention_heads", 16),
        intermediate_size=fields.count("intermediate_size", 4096),
        patch_size=fields.side("patch_size", 14),
        image_size=fields.side("image_size", 448),
        eps=fields.positive("layer_norm_eps", 1e-6),
        norm_type=fields.choice("norm_type", "layer_norm", get_args(NormType)),
        qk_normalization=fields.flag("use_qk_norm", default=False),
        qkv_bias=fields.flag("attention_bias", default=False),
        hidden_act=fields.choice("hidden_act", "gelu", ["gelu"]),
        mean=mean,
        std=std,
    )


@dataclass(frozen=True, slots=True)
class _TextDefaults:
    """What a language model's configuration class says where config.json says nothing."""

    vocab_size: int
    context_tokens: int
    intermediate_size: int = 11008
    kv_heads: int | None = None
    head_dim: int | None = None


_TEXT_DEFAULTS: dict[TextArchitecture, _TextDefaults] = {
    "internlm2": _TextDefaults(vocab_size=103168, context_tokens=2048),
    "llama": _TextDefaults(vocab_size=32000, context_tokens=2048),
    "qwen2": _TextDefaults(vocab_size=151936, context_tokens=32768, intermediate_size=22016, kv_heads=32),
    "qwen3": _TextDefaults(151936, 32768, intermediate_size=22016, kv_heads=32, head_dim=128),
}


def _text_architecture(fields: Fields) -> TextArchitecture:
    names = fields.values.get("architectures") or []
    if isinstance(names, list) and len(names) == 1 and names[0] in TEXT_ARCHITECTURES:
        return TEXT_ARCHITECTURES[names[0]]
    raise fields.refused("architectures", ", ".join(TEXT_ARCHITECTURES))


def _text(fields: Fields, architecture: TextArchitecture, root: Fields, *, tied: bool) -> TextConfig:
    fields.choice("hidden_act", "silu", ["silu"])
    fields.choice("mlp_bias", False, [False])
    _refuse_windows(fields)
    default = _TEXT_DEFAULTS[architecture]
    hidden_size, heads = fields.count("hidden_size", 4096), fields.count("num_attention_heads", 32)
    qkv_bias, o_bias = _attention_biases(fields, architecture)
    return TextConfig(
        architecture=architecture,
        hidden_size=hidden_size,
        layers=fields.count("num_hidden_layers", 32),
        heads=heads,
        kv_heads=fields.count("num_key_value_heads", default.kv_heads or heads),
        head_dim=fields.count("head_dim", default.head_dim or hidden_size // heads),
        intermediate_size=fields.count("intermediate_size", default.intermediate_size),
        eps=fields.positive("rms_norm_eps", 1e-6),
        rope_theta=_rope_theta(fields),
        rope_dtype=_declared_dtype(root),
        context_tokens=fields.count("max_position_embeddings", default.context_tokens),
        vocab_size=fields.count("vocab_size", default.vocab_size),
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        qk_norm=architecture == "qwen3",
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=tied),
    )


def _attention_biases(fields: Fields, architecture: TextArchitecture) -> tuple[bool, bool]:
    """(q, k and v; o) have biases."""
    if architecture == "qwen2":
        return True, False
    both = fields.flag(
        "bias" if architecture == "internlm2" else "attention_bias", default=architecture == "internlm2"
    )
    return both, both


def _refuse_windows(fields: Fields) -> None:
    fields.choice("use_sliding_window", False, [False])
    kinds = fields.values.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise fields.refused("layer_types", "full_attention in every layer")


def _rope_theta(fields: Fields) -> float:
    """Theta of a plain rope, or of a dynamic one, which is plain up to the trained limit. Others are refused."""
    for name in ("rope_scaling", "rope_parameters"):
        scaling = fields.section(name)
        key = "rope_type" if scaling.has("rope_type") else "type"
        plain = set(scaling.values) <= {"rope_theta", "partial_rotary_factor", "type", "rope_type"}
        if not plain and not scaling.has(key):  # a factor, say: of which rope?
            raise scaling.refused("rope_type", '"default", "dynamic"')
        scaling.choice(key, "default", ["default", "dynamic"])
        scaling.choice("partial_rotary_factor", 1.0, [1.0])
    fields.choice("rope_pos_id_version", "default", ["default"])
    return fields.section("rope_parameters").positive("rope_theta", fields.positive("rope_theta", 10000.0))


def _declared_dtype(root: Fields) -> RopeDType:
    """The dtype that the checkpoint was made to run in; `dtype` is newer transformers' name of the field."""
    name = "torch_dtype" if root.has("torch_dtype") else "dtype"
    return root.choice(name, "float32", get_args(RopeDType))


def _system(root: Fields) -> str | None:
    value = root.values.get("system_message")
    if value is not None and not isinstance(value, str):
        raise root.refused("system_message", "text or null")
    return value


def _tile_limit(root: Fields, *, default: int) -> int:
    root.choice("min_dynamic_patch", 1, [1])
    limit = root.count("max_dynamic_patch", default)
    if limit > MOST_TILES:
        raise root.refused("max_dynamic_patch", f"1..{MOST_TILES}")
    return limit


def _preprocessor(directory: Path) -> Fields:
    """preprocessor_config.json, or the image processor's part of newer processor_config.json."""
    own = read_optional_fields(directory / "preprocessor_config.json")
    return (
        own
        if own.values
        else read_optional_fields(directory / "processor_config.json").section("image_processor")
    )


def _normalization(directory: Path) -> tuple[Rgb, Rgb]:
    fields = _preprocessor(directory)
    return _rgb(fields, "image_mean", IMAGENET_MEAN), _rgb(fields, "image_std", IMAGENET_STD)


def _rgb(fields: Fields, name: str, default: Rgb) -> Rgb:
    value = fields.values.get(name, default)
    if (
        not isinstance(value, (list, tuple))
        or len(value) != 3
        or not all(isinstance(each, (int, float)) and 0 < each < math.inf for each in value)
    ):
        raise fields.refused(name, "three numbers above 0")
    red, green, blue = (float(each) for each in value)
    return red, green, blue


def _eos_ids(text: Fields, directory: Path) -> tuple[int, ...]:
    generation = read_optional_fields(directory / "generation_config.json")
    return tuple(dict.fromkeys((*text.ids("eos_token_id"), *generation.ids("eos_token_id"))))


def _refuse_quantized(root: Fields) -> None:
    if root.has("quantization_config"):
        raise CheckpointError(
            f"{root.path}.quantization_config is set: its weights are quantized already; "
            "supported: bf16, f16 and f32 checkpoints (vitrail quantizes at export)"
        )


def _check_consistency(config: ModelConfig) -> None:
    """Sizes that must divide one another, and indices that must exist."""
    vision, text = config.vision, config.text
    rules = {
        f"num_hidden_layers is {max(vision.layers, text.layers)}, more than {MOST_LAYERS}": max(vision.layers, text.layers) > MOST_LAYERS,
        f"vision hidden_size {vision.hidden_size} is no multiple of {vision.heads} heads": vision.hidden_size % vision.heads,
        f"image_size {vision.image_size} is no multiple of patch_size {vision.patch_size}": vision.image_size % vision.patch_size,
        f"tile size {config.tile_size} is no multiple of patch_size {vision.patch_size}": config.tile_size % vision.patch_size,
        f"downsample_ratio {config.downsample_ratio} is no 1/n that divides a grid of {config.tile_grid} patches": not _divides(config),
        f"{text.heads} attention heads are no multiple of {text.kv_heads} KV heads": text.heads % text.kv_heads,
        f"head_dim {text.head_dim} is odd, which rope cannot rotate": text.head_dim % 2,
        f"select_layer {config.select_layer} is outside -{vision.layers}..{vision.layers}": not 0 < config.vision_layers <= vision.layers,
    }  # fmt: skip
    for complaint, broken in rules.items():
        if broken:
            raise CheckpointError(f"config.json: {complaint}; fix the checkpoint's config.json")


def _divides(config: ModelConfig) -> bool:
    return (
        math.isclose(config.shuffle * config.downsample_ratio, 1) and config.tile_grid % config.shuffle == 0
    )
