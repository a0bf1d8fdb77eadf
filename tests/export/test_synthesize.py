"""Synthetic checkpoints: published configurations, sane random weights, tokenizers of the right kind and ids."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import sentencepiece
from transformers import Qwen2Tokenizer

from vitrail.errors import ExportError, OptionError
from vitrail_export import synthesize as module
from vitrail_export.checkpoint import Checkpoint
from vitrail_export.names import EMBEDDING
from vitrail_export.published import PUBLISHED
from vitrail_export.reference import Reference
from vitrail_export.synthesize import size_bytes, synthesize, write_synthetic
from vitrail_export.synthetic_tokenizer import invented_merges, write_tokenizer
from vitrail_export.tokenizer import export_tokenizer
from vitrail_export.weights import INDEX, SINGLE

SILENT = lambda *_: None  # noqa: E731
KINDS = ("internvl2-2b", "internvl3-8b")
IDS = {
    "internvl2-2b": {"<|im_end|>": 92542, "<|im_start|>": 92543, "<img>": 92544, "</img>": 92545, "<IMG_CONTEXT>": 92546, "</box>": 92552},
    "internvl3-8b": {"<|endoftext|>": 151643, "<|im_end|>": 151645, "<img>": 151665, "</img>": 151666, "<IMG_CONTEXT>": 151667, "</box>": 151673},
}  # fmt: skip


def small(name):
    """The published model with few narrow layers: its vocabulary, head size and everything else as published."""
    model = PUBLISHED[name]
    text = model.config.text
    groups = text.query_groups
    text = dataclasses.replace(
        text, layers=2, hidden_size=128, heads=2 * groups, kv_heads=2, head_dim=32, intermediate_size=160
    )
    vision = dataclasses.replace(model.config.vision, layers=2, hidden_size=64, heads=4, intermediate_size=96)
    return dataclasses.replace(model, config=dataclasses.replace(model.config, text=text, vision=vision))


@pytest.fixture(
    scope="module", params=[(name, layout) for name in KINDS for layout in ("original", "hf")], ids="-".join
)
def synthetic(request, tmp_path_factory):
    name, layout = request.param
    out = tmp_path_factory.mktemp(name) / "out"
    return name, layout, write_synthetic(small(name), out, layout=layout, seed=0, progress=SILENT)


def test_sizes_are_the_published_models():
    # Parameters by the published checkpoints' metadata, two bytes each.
    assert size_bytes("internvl2-2b") == 2 * 2_205_754_368
    assert size_bytes("mini-internvl-2b-1.5") == 2 * 2_205_754_368
    assert size_bytes("internvl3-8b") == 2 * 7_944_373_760


@pytest.mark.parametrize(
    ("name", "text", "template"),
    [
        ("internvl2-2b", (2048, 24, 16, 8, 128, 8192, 92553), "internlm2-chat"),
        ("mini-internvl-2b-1.5", (2048, 24, 16, 8, 128, 8192, 92553), "internlm2-chat"),
        ("internvl3-8b", (3584, 28, 28, 4, 128, 18944, 151674), "internvl2_5"),
    ],
)
def test_configurations_are_the_published_ones(name, text, template):
    config = PUBLISHED[name].config
    found = config.text
    assert text == (found.hidden_size, found.layers, found.heads, found.kv_heads, found.head_dim, found.intermediate_size, found.vocab_size)  # fmt: skip
    assert (found.rope_theta, found.context_tokens) == (1e6, 32768)
    vision = config.vision
    assert (vision.hidden_size, vision.layers, vision.heads, vision.intermediate_size) == (1024, 24, 16, 4096)
    assert (config.template, config.tokens_per_tile, config.feature_size, config.max_tiles) == (
        template,
        256,
        4096,
        12,
    )


def test_a_synthetic_checkpoint_opens_as_what_it_was_made_from(synthetic):
    name, layout, out = synthetic
    checkpoint = Checkpoint.open(out)
    assert checkpoint.config == module.in_layout(small(name).config, layout)


def test_activations_are_finite_and_far_inside_float16(synthetic):
    _, _, out = synthetic
    checkpoint = Checkpoint.open(out)
    reference = Reference(checkpoint)
    features = reference.features(np.random.default_rng(0).integers(0, 256, (1, 3, 448, 448), np.uint8))
    embeds = reference.embeds(features)
    logits = reference.logits(
        np.concatenate([embeds, reference.token_embeds([5, 6, 7])[None]], axis=1), positions=[-3, -1]
    )
    for activations in (features, embeds, logits):
        assert np.isfinite(activations).all()
        assert 0.05 < activations.std() < 10
        assert np.abs(activations).max() < 100
    # Different tokens give different answers.
    assert np.abs(logits[0] - logits[1]).max() > 0.1


def test_no_two_rows_of_a_weight_are_equal(synthetic):
    _, _, out = synthetic
    checkpoint = Checkpoint.open(out)
    for name in checkpoint.names():
        array = checkpoint.load(name)
        if array.ndim == 2:
            assert len(np.unique(array[:4096, :8], axis=0)) == len(array[:4096]), name


def test_no_token_is_a_row_of_a_matrix_that_it_is_multiplied_with():
    """Where in the block a matrix begins depends on its name: its rows may be anywhere."""
    spread, width = module.spread_of(EMBEDDING, (92553, 2048)), 64
    numbers = module.Numbers(0)
    (row,) = numbers.blocks(EMBEDDING, spread, width)
    matrix = np.concatenate(
        list(numbers.blocks("m", spread._replace(backwards=False), 2 * module.BLOCK_ITEMS))
    )
    places = np.flatnonzero(matrix[:-width] == row[0])
    assert len(places)
    assert not any(np.array_equal(matrix[at : at + width], row) for at in places)


def test_the_tokenizer_exports_with_the_published_ids(synthetic, tmp_path):
    name, _, out = synthetic
    config = PUBLISHED[name].config
    contract = export_tokenizer(out, tmp_path, template=config.template, eos_ids=config.eos_ids)
    assert {token: contract.special[token] for token in IDS[name]} == IDS[name]
    assert set(contract.stop_ids) == {IDS[name]["<|im_end|>"], *config.eos_ids}
    assert contract.bos_id == (1 if name == "internvl2-2b" else None)


def test_the_sentencepiece_model_has_the_published_size_and_spells_any_text(tmp_path):
    write_tokenizer(PUBLISHED["internvl2-2b"].vocabulary, tmp_path)
    model = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    assert (model.vocab_size(), model.unk_id(), model.bos_id(), model.eos_id(), model.pad_id()) == (
        92544,
        0,
        1,
        2,
        -1,
    )
    text = "Describe  the banana,\n你好 🙂 bakapobu"
    assert model.decode(model.encode(text)) == text
    assert model.encode("a banana", out_type=str) == ["a", "▁ba", "nana"]
    assert len({model.id_to_piece(each) for each in range(92544)}) == 92544


def test_the_byte_level_vocabulary_has_the_published_size_and_spells_any_text(tmp_path):
    write_tokenizer(PUBLISHED["internvl3-8b"].vocabulary, tmp_path)
    tokenizer = Qwen2Tokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 151674
    text = "Describe  the banana,\n你好 🙂 bakapobu"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.tokenize("a banana") == ["a", "Ġba", "nana"]
    assert tokenizer.encode("<|im_end|><IMG_CONTEXT>") == [151645, 151667]


def test_invented_words_are_distinct_and_made_of_earlier_ones():
    known = set("bcdfghjklmnpqrstvwxyzaeiou_")
    for left, right, _ in zip(*zip(*invented(30_000), strict=True), range(30_000), strict=True):
        assert {left, right} <= known
        assert left + right not in known
        known.add(left + right)


def invented(count):
    merges = invented_merges("_")
    return [next(merges) for _ in range(count)]


def test_a_seed_decides_every_weight(tmp_path):
    def write(out, seed):
        (tmp_path / out).mkdir()
        module._write_weights(small("internvl2-2b").config, tmp_path / out, seed, SILENT)
        return b"".join(file.read_bytes() for file in sorted((tmp_path / out).iterdir()))

    assert write("a", 1) == write("b", 1)
    assert write("c", 2) != (tmp_path / "a" / SINGLE).read_bytes()


def test_large_checkpoints_are_sharded_with_an_index(tmp_path, monkeypatch):
    whole = Checkpoint.open(
        write_synthetic(small("internvl3-8b"), tmp_path / "whole", layout="hf", seed=0, progress=SILENT)
    )
    monkeypatch.setattr(module, "SHARD_BYTES", 39_000_000)
    out = write_synthetic(small("internvl3-8b"), tmp_path / "shards", layout="hf", seed=0, progress=SILENT)
    files = sorted(file.name for file in out.glob("*.safetensors"))
    assert files == [f"model-0000{at}-of-00004.safetensors" for at in (1, 2, 3, 4)]
    assert (out / INDEX).is_file()
    assert all((out / file).stat().st_size < 39_000_000 + 100_000 for file in files)
    sharded = Checkpoint.open(out)
    for name in ("vision.layers.1.attn.qkv.weight", "text.lm_head.weight"):
        np.testing.assert_array_equal(sharded.load(name), whole.load(name))


def test_layers_can_be_cut_and_the_config_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "internvl2-2b", small("internvl2-2b"))
    seen = []
    out = synthesize(
        "internvl2-2b", tmp_path / "out", layers=1, progress=lambda name, size: seen.append((name, size))
    )
    config = Checkpoint.open(out).config
    assert (config.vision.layers, config.text.layers) == (1, 1)
    assert sum(size for _, size in seen) == size_bytes("internvl2-2b", layers=1) < size_bytes("internvl2-2b")
    assert "language_model.model.layers.0.attention.wqkv.weight" in dict(seen)


def test_wrong_requests_are_refused(tmp_path):
    with pytest.raises(
        OptionError, match=r"'gpt' is no model .* supported: internvl2-2b, internvl3-8b, mini"
    ):
        synthesize("gpt", tmp_path / "out")
    with pytest.raises(OptionError, match="layers is 0"):
        synthesize("internvl2-2b", tmp_path / "out", layers=0)
    with pytest.raises(OptionError, match="layers is 25, the published model has 24; give at most that"):
        synthesize("internvl2-2b", tmp_path / "out", layers=25)
    with pytest.raises(OptionError, match="seed is -1; give 0 or more"):
        synthesize("internvl2-2b", tmp_path / "out", seed=-1)
    with pytest.raises(OptionError, match="layout 'gguf' is unknown; supported: original, hf"):
        synthesize("internvl2-2b", tmp_path / "out", layout="gguf")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(OptionError, match="is not an empty directory"):
        synthesize("internvl2-2b", tmp_path / "used")


def test_a_full_disk_is_found_out_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    with pytest.raises(ExportError, match=r"has room for 1\.0 GB, the weights need 4\.4 GB"):
        synthesize("internvl2-2b", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
