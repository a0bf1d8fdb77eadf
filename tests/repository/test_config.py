"""The repository in the tree: files that Triton's own schema reads, in step with the names and types on the wire."""

import json
from pathlib import Path

import pytest
from google.protobuf import text_format
from tests.conftest import CHECKPOINTS
from tritonclient.grpc import model_config_pb2 as pb

from vitrail.client import wire
from vitrail.decoder import Settings
from vitrail.errors import ArtifactError, InvalidInput, OptionError, ServerError
from vitrail.manifest import load_manifest
from vitrail.providers import Cuda
from vitrail.triton import repository
from vitrail.triton.question import SINGLE_OPTIONS, TILES_REUSED, VISION_STARTED
from vitrail.triton.repository import (
    BATCH_TILES,
    MODELS,
    ServingSettings,
    packaged_repository,
    settings_from_json,
    shared_memory_shortage,
    write_repository,
)

QUESTION = {wire.PROMPT, wire.TEXT_INPUT, wire.NUM_TILES, wire.OPTIONS, *SINGLE_OPTIONS}


def read(directory, model):
    config = (directory / model / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(config, pb.ModelConfig())


@pytest.fixture
def configs():
    return {model: read(packaged_repository(), model) for model in MODELS}


def names(tensors):
    return {tensor.name for tensor in tensors}


def parameters(directory, model):
    return {key: value.string_value for key, value in read(directory, model).parameters.items()}


def test_every_model_is_named_as_its_folder_and_python_models_are_one_line(configs):
    for model, config in configs.items():
        code = packaged_repository() / model / "1" / "model.py"
        assert config.name == model
        assert code.exists() == (config.backend == "python")
        assert not code.exists() or len(code.read_text().splitlines()) == 1
    assert configs[wire.ENSEMBLE].platform == "ensemble"


def test_the_batch_dimension_of_the_vision_models_is_the_tile(configs):
    for model, tensor in ((wire.VISION_ENCODER, wire.TILES), (wire.PROJECTOR, wire.FEATURES)):
        assert configs[model].max_batch_size == BATCH_TILES
        assert configs[model].HasField("dynamic_batching")
        assert [entry.name for entry in configs[model].input] == [tensor]


def test_the_decoder_streams_and_every_one_of_its_inputs_may_be_left_out(configs):
    decoder = configs[wire.DECODER]
    assert decoder.model_transaction_policy.decoupled
    assert decoder.max_batch_size == 0
    assert all(entry.optional for entry in decoder.input)
    pictures = {wire.IMAGE_EMBEDS, wire.TILES, VISION_STARTED, TILES_REUSED}
    assert names(decoder.input) == QUESTION | pictures | {wire.ABORT, wire.ANNOUNCE}
    assert names(decoder.output) == {wire.TEXT_OUTPUT, wire.DELTA}


def test_the_ensemble_passes_the_whole_question_on_and_its_types_are_the_decoder_s(configs):
    ensemble, decoder = configs[wire.ENSEMBLE], configs[wire.DECODER]
    assert names(ensemble.input) == QUESTION | {wire.TILES}
    assert {entry.name for entry in ensemble.input if entry.optional} == QUESTION
    types = {entry.name: (entry.data_type, list(entry.dims)) for entry in decoder.input}
    assert all(types[entry.name] == (entry.data_type, list(entry.dims)) for entry in ensemble.input)
    steps = {step.model_name: step for step in ensemble.ensemble_scheduling.step}
    assert set(steps) == {wire.VISION_ENCODER, wire.PROJECTOR, wire.DECODER}
    assert set(steps[wire.DECODER].input_map) == QUESTION | {wire.IMAGE_EMBEDS, VISION_STARTED, TILES_REUSED}


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_a_written_repository_tells_models_and_clients_all_they_need(exported, tmp_path, checkpoint):
    artifacts = exported(checkpoint, precision="float16", vision_precision="float16")
    settings = ServingSettings(decoder=Settings(slots=3, context_tokens=600), provider=Cuda(1, 2 << 30))
    out = write_repository(artifacts, tmp_path / "models", settings=settings)
    for model in (wire.VISION_ENCODER, wire.PROJECTOR, wire.DECODER):
        assert parameters(out, model)[wire.ARTIFACTS_PARAMETER] == str(artifacts)
        assert settings_from_json(parameters(out, model)[repository.SETTINGS_PARAMETER]) == settings
    contract = wire.contract_from_json(parameters(out, wire.DECODER)[wire.CONTRACT_PARAMETER])
    assert (contract.slots, contract.context_tokens, contract.max_request_tiles) == (3, 599, BATCH_TILES)
    assert contract.name == checkpoint
    assert (out / wire.ENSEMBLE / "1").is_dir()


def test_strange_paths_survive_the_text_format(exported, tmp_path):
    strange = tmp_path / 'a "quoted" \\ path\nwith a line\tand Ünïcode'
    strange.symlink_to(exported("internvl2-tiny"))
    copied = tmp_path / 'b "\\\n\té'
    copied.mkdir()
    for file in strange.iterdir():
        (copied / file.name).symlink_to(file)
    out = write_repository(copied, tmp_path / "models")
    assert parameters(out, wire.DECODER)[wire.ARTIFACTS_PARAMETER] == str(copied)


def test_writing_again_changes_nothing_until_the_settings_do(exported, tmp_path):
    artifacts, out = exported("internvl2-tiny"), tmp_path / "models"
    config = write_repository(artifacts, out) / wire.DECODER / "config.pbtxt"
    first = config.stat()
    write_repository(artifacts, out)
    assert (config.stat().st_ino, config.stat().st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    write_repository(artifacts, out, settings=ServingSettings(threads=3))
    assert json.loads(parameters(out, wire.DECODER)[repository.SETTINGS_PARAMETER])["threads"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_a_failure_leaves_the_repository_as_it_was(exported, tmp_path, monkeypatch):
    artifacts, out = exported("internvl2-tiny"), tmp_path / "models"
    write_repository(artifacts, out)
    before = (out / wire.DECODER / "config.pbtxt").read_text()
    monkeypatch.setattr(repository.shutil, "copy", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_repository(artifacts, out, settings=ServingSettings(threads=3))
    assert (out / wire.DECODER / "config.pbtxt").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_a_directory_of_something_else_is_not_overwritten(exported, tmp_path):
    (tmp_path / "thesis.txt").write_text("…")
    with pytest.raises(
        InvalidInput, match="is no vitrail model repository; give a new or an empty directory"
    ):
        write_repository(exported("internvl2-tiny"), tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_what_cannot_be_served_is_refused_before_anything_is_written(exported, tmp_path):
    out = tmp_path / "models"
    with pytest.raises(ArtifactError, match="vitrail export"):
        write_repository(tmp_path / "nowhere", out)
    settings = ServingSettings(decoder=Settings(context_tokens=99999))
    with pytest.raises(OptionError, match="context_tokens is 99999"):
        write_repository(exported("internvl2-tiny"), out, settings=settings)
    assert not out.exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"threads": -1}, "threads is -1"),
        ({"tiles_per_run": 0}, "from 1 to 128"),
        ({"gpu": "sm_90"}, "gpu sm_90 chooses among TensorRT's engines, which target cpu runs none of"),
        ({"threads": 2, "provider": Cuda()}, "threads is 2, but provider cuda:0 computes on a GPU"),
    ],
)
def test_settings_outside_their_range_are_refused(settings, words):
    with pytest.raises(OptionError, match=words):
        ServingSettings(**settings)


def test_settings_that_were_edited_by_hand_are_refused_by_name():
    for text in (
        "",
        "[]",
        "{}",
        '{"decoder": {"slots": 1}, "provider": "gpu"}',
        '{"decoder": {"slots": 1}, "provider": "cpu", "colour": 1}',
    ):
        with pytest.raises(OptionError):
            settings_from_json(text)


def test_the_repository_inside_an_installed_package_is_found(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "vitrail"
    (package / "triton").mkdir(parents=True)
    monkeypatch.setattr(repository, "__file__", str(package / "triton" / "repository.py"))
    with pytest.raises(ServerError, match="install it again"):
        packaged_repository()
    installed = package / "model_repository"
    installed.symlink_to(Path(__file__).parents[2] / "model_repository")
    assert packaged_repository() == installed


def test_a_shared_memory_that_is_too_small_for_a_picture_is_told_with_the_cure(exported):
    manifest = load_manifest(exported("internvl2-tiny"))
    assert shared_memory_shortage(manifest, free_bytes=1 << 30) is None
    told = shared_memory_shortage(manifest, free_bytes=16 << 20)
    assert "(/dev/shm) has 16 MiB free, a picture of 40 tiles needs 51 MiB" in told
    assert "--shm-size" in told
