"""config.json of both layouts: what is read, what is assumed where it is silent, and what is refused."""

import dataclasses
import json

import pytest
from tests.conftest import REFERENCE
from tests.export.layouts import copy_checkpoint, edit_config
from transformers import InternVLConfig, InternVLVisionConfig, LlamaConfig, Qwen2Config, Qwen3Config

from vitrail.errors import CheckpointError
from vitrail_export.config import ModelConfig, TextConfig, VisionConfig
from vitrail_export.config_json import read_config
from vitrail_export.config_write import in_layout, write_config
from vitrail_export.published import PUBLISHED


@pytest.fixture
def copied(tmp_path):
    return copy_checkpoint("internvl2-tiny", tmp_path / "copy")


@pytest.fixture
def hf(tmp_path):
    directory = tmp_path / "hf"
    directory.mkdir()
    write_config(in_layout(PUBLISHED["internvl3-8b"].config, "hf"), directory, image_context_id=151667)
    return directory


def write_json(directory, name, fields):
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(json.dumps(fields))
    return directory


def test_an_original_config_is_read_whole():
    config = read_config(REFERENCE / "internvl2-tiny")
    assert config == ModelConfig(
        layout="original",
        architecture="InternVLChatModel",
        vision=VisionConfig(
            hidden_size=64,
            layers=3,
            heads=4,
            intermediate_size=160,
            patch_size=14,
            image_size=448,
            eps=1e-6,
            norm_type="layer_norm",
            qk_normalization=False,
            qkv_bias=True,
        ),
        text=TextConfig(
            architecture="internlm2",
            hidden_size=96,
            layers=3,
            heads=6,
            kv_heads=2,
            head_dim=16,
            intermediate_size=256,
            eps=1e-5,
            rope_theta=1e6,
            rope_dtype="bfloat16",
            context_tokens=32768,
            vocab_size=1616,
            qkv_bias=False,
            o_bias=False,
            qk_norm=False,
            tie_word_embeddings=False,
        ),
        template="internlm2-chat",
        system=None,
        tile_size=448,
        downsample_ratio=0.5,
        select_layer=-1,
        ps_version="v2",
        max_tiles=12,
        thumbnail=True,
        eos_ids=(2,),
    )
    assert (config.tokens_per_tile, config.feature_size, config.vision_layers) == (256, 256, 3)


def test_a_silent_original_config_has_the_defaults_of_its_classes(tmp_path):
    fields = {
        "architectures": ["InternVLChatModel"],
        "template": "phi3-chat",
        "llm_config": {"architectures": ["InternLM2ForCausalLM"]},
    }
    config = read_config(write_json(tmp_path, "config.json", fields))
    vision, text = config.vision, config.text
    assert (vision.hidden_size, vision.layers, vision.heads, vision.intermediate_size) == (
        3200,
        48,
        25,
        12800,
    )
    assert (vision.norm_type, vision.qk_normalization, vision.qkv_bias, vision.image_size) == (
        "rms_norm",
        True,
        False,
        224,
    )
    assert (config.ps_version, config.select_layer, config.downsample_ratio) == ("v1", -1, 0.5)
    assert (config.max_tiles, config.thumbnail, config.tile_size) == (1, False, 224)
    assert (text.vocab_size, text.kv_heads, text.qkv_bias, text.o_bias) == (103168, 32, True, True)
    assert (text.context_tokens, text.rope_theta, text.rope_dtype) == (2048, 10000.0, "float32")


@pytest.mark.parametrize(
    "text", [LlamaConfig(), Qwen2Config(), Qwen3Config()], ids=lambda text: text.model_type
)
@pytest.mark.parametrize("whole", [True, False], ids=["every field", "differences only"])
def test_a_config_that_transformers_saved_is_read_as_transformers_means_it(tmp_path, text, whole):
    saved = InternVLConfig(text_config=text, vision_config=InternVLVisionConfig())
    fields = saved.to_dict() if whole else saved.to_diff_dict()
    fields["architectures"] = ["InternVLForConditionalGeneration"]
    config = read_config(write_json(tmp_path, "config.json", fields))
    vision = saved.vision_config
    assert config.layout == "hf"
    assert (config.template, config.system, config.ps_version) == ("internvl2_5", None, "v2")
    assert (config.vision.hidden_size, config.vision.layers) == (vision.hidden_size, vision.num_hidden_layers)
    assert (config.vision.image_size, config.vision.qkv_bias) == (448, vision.attention_bias)
    assert config.text.architecture == text.model_type
    assert config.text.head_dim == (
        getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    )
    assert (config.text.vocab_size, config.text.kv_heads) == (text.vocab_size, text.num_key_value_heads)
    assert config.text.rope_theta == text.rope_parameters["rope_theta"]
    assert (config.text.qkv_bias, config.text.o_bias) == (text.model_type == "qwen2", False)
    assert config.text.qk_norm == (text.model_type == "qwen3")


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("layout", ["original", "hf"])
def test_a_config_survives_being_written_and_read(tmp_path, name, layout):
    config = in_layout(PUBLISHED[name].config, layout)
    write_config(config, tmp_path, image_context_id=3)
    assert read_config(tmp_path) == config


@pytest.mark.parametrize(
    ("changes", "read"),
    [
        ({"force_image_size": None}, {"tile_size": 448}),
        ({"force_image_size": 896}, {"tile_size": 896, "tokens_per_tile": 1024}),
        ({"downsample_ratio": 0.25}, {"tokens_per_tile": 64, "feature_size": 1024}),
        ({"ps_version": "v1"}, {"ps_version": "v1"}),
        ({"select_layer": -2}, {"vision_layers": 2}),
        ({"select_layer": 1}, {"vision_layers": 1}),
        ({"dynamic_image_size": False}, {"max_tiles": 1}),
        ({"use_thumbnail": False}, {"thumbnail": False}),
        ({"system_message": None}, {"system": None}),
        ({"system_message": ""}, {"system": ""}),
        ({"system_message": "You see."}, {"system": "You see."}),
        ({"template": "Hermes-2"}, {"template": "Hermes-2"}),
        ({"llm_config__eos_token_id": [2, 7, 2]}, {"eos_ids": (2, 7)}),
    ],
    ids=str,
)
def test_a_field_of_config_json_decides(copied, changes, read):
    config = read_config(edit_config(copied, **changes))
    assert {name: getattr(config, name) for name in read} == read


@pytest.mark.parametrize(
    ("changes", "read"),
    [
        ({"llm_config__bias": True}, {"qkv_bias": True, "o_bias": True}),
        ({"llm_config__rope_scaling": None}, {"rope_theta": 1e6}),
        (
            {"llm_config__rope_theta": ..., "llm_config__rope_parameters": {"rope_theta": 5e5}},
            {"rope_theta": 5e5},
        ),
        ({"llm_config__rope_parameters": {"rope_type": "default", "rope_theta": 7}}, {"rope_theta": 7.0}),
        ({"llm_config__head_dim": 32}, {"head_dim": 32}),
        ({"llm_config__num_key_value_heads": None}, {"kv_heads": 6}),
        ({"torch_dtype": "float16"}, {"rope_dtype": "float16"}),
        ({"torch_dtype": ..., "dtype": "bfloat16"}, {"rope_dtype": "bfloat16"}),
        ({"torch_dtype": None}, {"rope_dtype": "float32"}),
        ({"tie_word_embeddings": True}, {"tie_word_embeddings": False}),
        ({"llm_config__tie_word_embeddings": True}, {"tie_word_embeddings": True}),
    ],
    ids=str,
)
def test_a_field_of_the_language_models_config_decides(copied, changes, read):
    text = read_config(edit_config(copied, **changes)).text
    assert {name: getattr(text, name) for name in read} == read


def test_end_of_text_ids_of_both_files_are_kept(copied):
    write_json(copied, "generation_config.json", {"eos_token_id": [1601, 2]})
    assert read_config(copied).eos_ids == (2, 1601)


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.5]}),
        (
            "processor_config.json",
            {"image_processor": {"image_mean": [0.5] * 3, "image_std": [0.25, 0.25, 0.5]}},
        ),
    ],
)
def test_the_preprocessor_may_say_another_mean_and_deviation(copied, file, fields):
    vision = read_config(write_json(copied, file, fields)).vision
    assert (vision.mean, vision.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.5))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"architectures": ["LlavaForCausalLM"]}, r'config\.json\.architectures is \["LlavaForCausalLM"\]; supported: InternVLChatModel, InternVL'),
        ({"architectures": ...}, r"architectures is null"),
        ({"llm_config__architectures": ["Phi3ForCausalLM"]}, r"llm_config\.architectures is .*Phi3.*supported: InternLM2ForCausalLM, Qwen2"),
        ({"llm_config": [1]}, r"llm_config is \[1\]; supported: an object"),
        ({"template": "vicuna_v1.1"}, r'template is "vicuna_v1\.1"; supported: "internlm2-chat", "Hermes-2", "internvl2_5", "phi3-chat"'),
        ({"template": None}, "template is null"),
        ({"ps_version": "v3"}, 'ps_version is "v3"; supported: "v1", "v2"'),
        ({"pad2square": True}, "pad2square is true; supported: false"),
        ({"use_llm_lora": 16}, "use_llm_lora is 16; supported: 0"),
        ({"system_message": 3}, "system_message is 3"),
        ({"min_dynamic_patch": 2}, "min_dynamic_patch is 2"),
        ({"max_dynamic_patch": 41}, r"max_dynamic_patch is 41; supported: 1\.\.40"),
        ({"max_dynamic_patch": True}, "max_dynamic_patch is true"),
        ({"downsample_ratio": 0.3}, r"downsample_ratio 0\.3 is no 1/n"),
        ({"downsample_ratio": -1}, "downsample_ratio is -1; supported: a number above 0"),
        ({"select_layer": -5}, r"select_layer -5 is outside -3\.\.3"),
        ({"force_image_size": 450}, "tile size 450 is no multiple of patch_size 14"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is set"),
        ({"torch_dtype": "float8_e4m3fn"}, 'torch_dtype is "float8_e4m3fn"'),
        ({"vision_config__hidden_act": "quick_gelu"}, r'vision_config\.hidden_act is "quick_gelu"; supported: "gelu"'),
        ({"vision_config__norm_type": "batch"}, 'norm_type is "batch"; supported: "layer_norm", "rms_norm"'),
        ({"vision_config__num_channels": 4}, "num_channels is 4; supported: 3"),
        ({"vision_config__image_size": [448, 224]}, "image_size is .448, 224."),
        ({"vision_config__num_attention_heads": 5}, "vision hidden_size 64 is no multiple of 5 heads"),
        ({"llm_config__hidden_act": "gelu"}, r'llm_config\.hidden_act is "gelu"; supported: "silu"'),
        ({"llm_config__mlp_bias": True}, "mlp_bias is true"),
        ({"llm_config__use_sliding_window": True}, "use_sliding_window is true"),
        ({"llm_config__layer_types": ["full_attention", "sliding_attention"]}, "layer_types is .*full_attention in every layer"),
        ({"llm_config__rope_scaling": {"type": "linear", "factor": 2.0}}, 'rope_scaling.type is "linear"; supported: "default", "dynamic"'),
        ({"llm_config__rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 'rope_scaling.rope_type is "yarn"'),
        ({"llm_config__rope_scaling": {"factor": 4.0}}, 'rope_scaling.rope_type is null; supported: "default", "dynamic"'),
        ({"llm_config__rope_parameters": {"factor": 4.0, "rope_theta": 1e6}}, "rope_parameters.rope_type is null"),
        ({"llm_config__rope_parameters": {"rope_type": "llama3"}}, 'rope_parameters.rope_type is "llama3"'),
        ({"llm_config__rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"llm_config__rope_pos_id_version": "v2pe_fix"}, 'rope_pos_id_version is "v2pe_fix"'),
        ({"llm_config__num_key_value_heads": 4}, "6 attention heads are no multiple of 4 KV heads"),
        ({"llm_config__layer_types": 3}, "layer_types is 3"),
        ({"llm_config__num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, more than 1000"),
        ({"llm_config__head_dim": 15}, "head_dim 15 is odd"),
        ({"llm_config__vocab_size": "many"}, 'vocab_size is "many"; supported: a whole number of at least 1'),
        ({"llm_config__eos_token_id": "</s>"}, "eos_token_id is .*token id"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_supported_is_refused_with_its_name_and_value(copied, changes, complaint):
    with pytest.raises(CheckpointError, match=complaint):
        read_config(edit_config(copied, **changes))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"projector_hidden_act": "relu"}, 'projector_hidden_act is "relu"; supported: "gelu"'),
        ({"vision_feature_select_strategy": "full"}, 'vision_feature_select_strategy is "full"'),
        ({"vision_feature_layer": [-1, -2]}, r"vision_feature_layer is \[-1, -2\]"),
        ({"vision_config__use_mean_pooling": False}, "use_mean_pooling is false"),
        (
            {"vision_config__use_absolute_position_embeddings": False},
            "use_absolute_position_embeddings is false",
        ),
        (
            {"text_config__model_type": "gpt_oss"},
            'text_config.model_type is "gpt_oss"; supported: "internlm2", "qwen2", "qwen3", "llama"',
        ),
    ],
    ids=str,
)
def test_what_is_not_supported_in_the_layout_of_transformers_is_refused_too(hf, changes, complaint):
    with pytest.raises(CheckpointError, match=complaint):
        read_config(edit_config(hf, **changes))


@pytest.mark.parametrize("mean", [[0.5, 0.5], [0.5, 0.5, 0], 0.5, "grey"])
def test_a_normalization_of_the_wrong_kind_is_refused(copied, mean):
    write_json(copied, "preprocessor_config.json", {"image_mean": mean})
    with pytest.raises(
        CheckpointError, match=r"preprocessor_config\.json\.image_mean is .*three numbers above 0"
    ):
        read_config(copied)


def test_records_are_frozen():
    config = PUBLISHED["internvl2-2b"].config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.tile_size = 1
