"""Weights of every layout, read by one vocabulary; damaged and unsupported files refused by name."""

import json
import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import CHECKPOINTS, REFERENCE
from tests.export.layouts import PREFIXES, copy_checkpoint, edit_config, edit_tensors, hf_twin

from vitrail.errors import CheckpointError
from vitrail_export.checkpoint import HUB_FILES, Checkpoint
from vitrail_export.resample import resample_positions
from vitrail_export.weights import INDEX, SINGLE

WQKV = "language_model.model.layers.1.attention.wqkv.weight"
EMBEDDING, HEAD = "language_model.model.tok_embeddings.weight", "language_model.output.weight"


@pytest.fixture
def copied(tmp_path):
    return copy_checkpoint("internvl2-tiny", tmp_path / "copy")


def stored(name):
    return {key: tensor.float().numpy() for key, tensor in load_file(REFERENCE / name / SINGLE).items()}


@pytest.mark.parametrize(
    ("checkpoint", "ours", "theirs"),
    [
        ("internvl2-tiny", "vision.patch_embedding.weight", "vision_model.embeddings.patch_embedding.weight"),
        ("internvl2-tiny", "vision.layers.2.attn.qkv.bias", "vision_model.encoder.layers.2.attn.qkv.bias"),
        ("internvl2-tiny", "vision.layers.1.ls2", "vision_model.encoder.layers.1.ls2"),
        ("internvl2-tiny", "projector.fc2.weight", "mlp1.3.weight"),
        (
            "internvl2-tiny",
            "text.layers.2.mlp.up.weight",
            "language_model.model.layers.2.feed_forward.w3.weight",
        ),
        (
            "internvl2-tiny",
            "text.layers.2.mlp.down.weight",
            "language_model.model.layers.2.feed_forward.w2.weight",
        ),
        ("internvl2-tiny", "text.layers.0.post_norm.weight", "language_model.model.layers.0.ffn_norm.weight"),
        ("internvl2-tiny", "text.lm_head.weight", HEAD),
        (
            "internvl3-tiny",
            "text.layers.3.attn.k.bias",
            "language_model.model.layers.3.self_attn.k_proj.bias",
        ),
        ("internvl3-tiny", "text.lm_head.weight", "language_model.lm_head.weight"),
    ],
)
def test_a_weight_is_the_tensor_that_the_table_names(checkpoint, ours, theirs):
    loaded = Checkpoint.open(REFERENCE / checkpoint).load(ours)
    np.testing.assert_array_equal(loaded, stored(checkpoint)[theirs])
    assert loaded.dtype == np.float32


def test_internlm2_queries_keys_and_values_are_taken_from_their_kv_groups():
    checkpoint = Checkpoint.open(REFERENCE / "internvl2-tiny")
    # 2 KV heads, each with 3 query heads, a key and a value of 16.
    groups = stored("internvl2-tiny")[WQKV].reshape(2, 5, 16, 96)
    np.testing.assert_array_equal(
        checkpoint.load("text.layers.1.attn.q.weight"), groups[:, :3].reshape(96, 96)
    )
    np.testing.assert_array_equal(
        checkpoint.load("text.layers.1.attn.k.weight"), groups[:, 3].reshape(32, 96)
    )
    np.testing.assert_array_equal(
        checkpoint.load("text.layers.1.attn.v.weight"), groups[:, 4].reshape(32, 96)
    )


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_rows_of_a_weight_are_rows_of_the_whole(name):
    checkpoint = Checkpoint.open(REFERENCE / name)
    for weight in checkpoint.names():
        whole = checkpoint.load(weight)
        assert whole.shape == checkpoint.shape(weight)
        for start, stop in ((0, len(whole)), (len(whole) // 3, len(whole)), (0, 0)):
            np.testing.assert_array_equal(checkpoint.load_rows(weight, start, stop), whole[start:stop])


def test_rows_outside_a_weight_and_unknown_names_are_programming_errors():
    checkpoint = Checkpoint.open(REFERENCE / "internvl2-tiny")
    with pytest.raises(IndexError, match="1616"):
        checkpoint.load_rows("text.embed_tokens.weight", 0, 1617)
    with pytest.raises(KeyError, match=r"text\.layers\.9"):
        checkpoint.load("text.layers.9.attn.q.weight")


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("prefixes", PREFIXES)
def test_the_layout_of_transformers_gives_the_same_weights_under_every_prefix(name, prefixes, tmp_path):
    original = Checkpoint.open(REFERENCE / name)
    twin = Checkpoint.open(hf_twin(REFERENCE / name, tmp_path / "twin", prefixes=prefixes, files=2))
    assert twin.config.layout == "hf"
    assert twin.names() == original.names()
    for weight in original.names():
        np.testing.assert_array_equal(twin.load(weight), original.load(weight), err_msg=weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_halves_and_floats_are_read_exactly(copied, dtype):
    edit_tensors(copied, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    expected = load_file(copied / SINGLE)[EMBEDDING].float().numpy()
    np.testing.assert_array_equal(Checkpoint.open(copied).load("text.embed_tokens.weight"), expected)


def test_a_tied_head_is_the_embedding_table(copied):
    edit_tensors(copied, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != HEAD})
    edit_config(copied, llm_config__tie_word_embeddings=True)
    checkpoint = Checkpoint.open(copied)
    np.testing.assert_array_equal(checkpoint.load("text.lm_head.weight"), stored("internvl2-tiny")[EMBEDDING])


def test_a_head_in_the_file_wins_over_a_config_that_says_tied(copied):
    edit_config(copied, llm_config__tie_word_embeddings=True)
    checkpoint = Checkpoint.open(copied)
    np.testing.assert_array_equal(checkpoint.load("text.lm_head.weight"), stored("internvl2-tiny")[HEAD])


def test_buffers_that_nothing_reads_are_ignored(copied):
    buffer = "language_model.model.layers.0.attention.rotary_emb.inv_freq"
    edit_tensors(copied, lambda tensors: tensors | {buffer: torch.zeros(8)})
    assert Checkpoint.open(copied).names() == Checkpoint.open(REFERENCE / "internvl2-tiny").names()


def test_positions_made_for_another_tile_size_are_resampled(copied):
    edit_config(copied, force_image_size=224)
    checkpoint = Checkpoint.open(copied)
    assert checkpoint.shape("vision.position_embedding") == (1, 257, 64)
    assert checkpoint.load("vision.position_embedding").shape == (1, 257, 64)


@pytest.mark.parametrize("grid", [16, 20, 32, 48])
def test_positions_are_resampled_as_by_torch(grid):
    embedding = np.random.default_rng(0).standard_normal((1, 1025, 8)).astype(np.float32)
    square = torch.from_numpy(embedding[:, 1:]).reshape(1, 32, 32, 8).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    resampled = resample_positions(embedding, grid)
    np.testing.assert_allclose(resampled[:, 1:], resized.flatten(2).transpose(1, 2).numpy(), atol=2e-5)
    np.testing.assert_array_equal(resampled[:, :1], embedding[:, :1])


def test_reading_rows_costs_the_rows_and_leaves_no_file_mapped(copied):
    vocabulary = 400_000
    edit_config(copied, llm_config__vocab_size=vocabulary)
    large = torch.zeros(vocabulary, 96, dtype=torch.bfloat16)
    edit_tensors(copied, lambda tensors: tensors | {EMBEDDING: large, HEAD: large.clone()})
    checkpoint = Checkpoint.open(copied)
    tracemalloc.start()
    rows = checkpoint.load_rows("text.embed_tokens.weight", 1000, 1100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows.shape == (100, 96)
    assert peak < 1 << 20
    assert SINGLE not in Path("/proc/self/maps").read_text()
    opened = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not any(SINGLE in path for path in opened)


def test_loading_needs_little_beyond_the_array_itself():
    checkpoint = Checkpoint.open(REFERENCE / "internvl3-tiny")
    tracemalloc.start()
    array = checkpoint.load("text.embed_tokens.weight")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # float32, and the stored bf16 of one block.
    assert peak < 1.7 * array.nbytes


def write_raw(directory, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (directory / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + data)


def entry(begin, end, dtype="F32", shape=None):
    return {"dtype": dtype, "shape": shape or [(end - begin) // 4], "data_offsets": [begin, end]}


def test_a_pointer_of_git_lfs_is_told_from_damaged_weights(copied):
    (copied / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 123\n"
    )
    with pytest.raises(CheckpointError, match=r"pointer of Git LFS.*git lfs pull"):
        Checkpoint.open(copied)


@pytest.mark.parametrize(
    ("header", "data", "complaint"),
    [
        (b"{", b"", "no JSON"),
        (b"[]", b"", "no JSON object"),
        ({"a": {"dtype": "F32"}}, b"", "'a' is damaged"),
        ({"a": entry(0, 8, "I8")}, bytes(8), "dtype I8; supported: F32, F16, BF16"),
        ({"a": entry(0, 8, shape=[3])}, bytes(8), "do not fit"),
        ({"a": entry(0, 8, shape=[-2])}, bytes(8), "do not fit"),
        ({"a": entry(0, 8)}, bytes(4), "cut off or damaged"),
        ({"a": entry(0, 8)}, bytes(12), "cut off or damaged"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), "'b' overlap"),
        ({"a": entry(0, 8), "b": entry(12, 16)}, bytes(16), "'b' leave a gap"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_whose_parts_disagree_is_refused(copied, header, data, complaint):
    write_raw(copied, header, data)
    with pytest.raises(CheckpointError, match=complaint):
        Checkpoint.open(copied)


@pytest.mark.parametrize("size", [0, 7, 8, 5000, -1])
def test_a_truncated_file_is_refused_at_open(copied, size):
    whole = (copied / SINGLE).read_bytes()
    (copied / SINGLE).write_bytes(whole[:size])
    with pytest.raises(CheckpointError, match="cut off"):
        Checkpoint.open(copied)


def test_a_file_that_shrinks_after_opening_is_an_error_and_no_garbage(copied):
    checkpoint = Checkpoint.open(copied)
    os.truncate(copied / SINGLE, 10_000)
    with pytest.raises(CheckpointError, match="ended while it was read"):
        checkpoint.load("vision.position_embedding")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda t: {k: v for k, v in t.items() if k != WQKV},
            r"lacks 'language_model\.model\.layers\.1\.attention\.wqkv",
        ),
        (lambda t: {k: v for k, v in t.items() if "vision_model" not in k}, "and 43 more tensors"),
        (lambda t: t | {"lora.weight": torch.zeros(2)}, r"has 'lora\.weight', which no supported model has"),
        (
            lambda t: t | {EMBEDDING: torch.zeros(1616, 97)},
            r"shape \[1616, 97\], its config.json calls for \[1616, 96\]",
        ),
        (lambda t: t | {WQKV: torch.zeros(159, 96)}, r"calls for \[160, 96\]"),
        (
            lambda t: t | {"lm_head.weight": torch.zeros(2), "language_model.lm_head.weight": torch.zeros(2)},
            "twice",
        ),
    ],
)
def test_missing_extra_and_misshapen_tensors_are_named(copied, change, complaint):
    edit_tensors(copied, change)
    with pytest.raises(CheckpointError, match=complaint):
        Checkpoint.open(copied)


def shard(directory, weight_map):
    (directory / SINGLE).rename(directory / "part.safetensors")
    (directory / INDEX).write_text(json.dumps(weight_map))


@pytest.mark.parametrize(
    ("index", "complaint"),
    [
        ([], "no index"),
        ({"weight_map": {}}, "maps no tensors"),
        ({"weight_map": {"a": 3}}, "maps no tensors"),
        ({"weight_map": {"a": "other.safetensors"}}, r"lacks the shard other\.safetensors"),
        ({"weight_map": {"a": "../part.safetensors"}}, "a file beside it"),
        (
            {"weight_map": {"a": "part.safetensors"}},
            r"places 'a' in part\.safetensors, which does not hold it",
        ),
    ],
)
def test_an_index_that_does_not_match_its_shards_is_refused(copied, index, complaint):
    shard(copied, index)
    with pytest.raises(CheckpointError, match=complaint):
        Checkpoint.open(copied)


def test_a_tensor_in_two_shards_is_refused(copied):
    shard(copied, {"weight_map": {EMBEDDING: "part.safetensors", HEAD: "same.safetensors"}})
    shutil.copy(copied / "part.safetensors", copied / "same.safetensors")
    with pytest.raises(CheckpointError, match="is in two shards"):
        Checkpoint.open(copied)


def test_pickled_weights_are_never_opened(copied):
    (copied / SINGLE).rename(copied / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights only, which can run code"):
        Checkpoint.open(copied)


def test_directories_without_weights_or_config_are_refused(copied, tmp_path):
    (copied / SINGLE).unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        Checkpoint.open(copied)
    (copied / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        Checkpoint.open(copied)
    (copied / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        Checkpoint.open(copied)
    with pytest.raises(CheckpointError, match="give the checkpoint's directory"):
        Checkpoint.open(copied / "added_tokens.json")
    with pytest.raises(CheckpointError, match="no checkpoint directory"):
        Checkpoint.open(tmp_path / "nowhere" / "at" / "all")


def test_a_hub_id_is_downloaded_without_its_code(monkeypatch):
    asked = {}

    def snapshot_download(hub_id, *, allow_patterns):
        asked.update(hub_id=hub_id, patterns=allow_patterns)
        return str(REFERENCE / "internvl3-tiny")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    checkpoint = Checkpoint.open("OpenGVLab/InternVL3-8B")
    assert checkpoint.name == "InternVL3-8B"
    assert checkpoint.path == REFERENCE / "internvl3-tiny"
    assert asked == {"hub_id": "OpenGVLab/InternVL3-8B", "patterns": HUB_FILES}
    assert not any(Path("modeling_internvl_chat.py").match(pattern) for pattern in HUB_FILES)


def test_a_hub_that_cannot_be_reached_is_said_so(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        CheckpointError, match="'no-such-org/no-such-model' is no directory, and the hub did not give it"
    ):
        Checkpoint.open("no-such-org/no-such-model")
