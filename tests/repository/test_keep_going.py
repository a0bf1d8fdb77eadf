"""A model that cannot be loaded beside models that can: the start ends with its reason, or the others serve without it."""

import shutil
from dataclasses import replace

import pytest
import tritonclient.grpc as triton
from PIL import Image
from tests.repository.engines import with_engines
from tests.repository.stand_ins import stand_in
from tests.runtime.engine_fakes import with_engines as with_all_engines
from typer.testing import CliRunner

import vitrail
from vitrail.cli import app
from vitrail.client import wire
from vitrail.engine import Engine
from vitrail.errors import ArtifactError, ServerError
from vitrail.manifest import load_manifest
from vitrail.providers import Cpu, Cuda, TensorRt
from vitrail.triton import log
from vitrail.triton.options import ServerOptions
from vitrail.triton.repository import MODELS, ServingSettings, write_repository
from vitrail.triton.serve import supervised
from vitrail.triton.server import Server
from vitrail.triton.targets import VERSION_PARAMETER, parse_config

ASKED = {"max_tokens": 6, "ignore_eos": True}
REFUSES = """
class TritonPythonModel:
    def initialize(self, args):
        import triton_python_backend_utils as pb_utils
        raise pb_utils.TritonModelException("[artifact] the weights are no weights; export again")
"""
PICTURED = [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (64, 64))}]}]
FAILED = (
    "2026-01-01T00:00:00Z E 1 model_lifecycle.cc:642] \"failed to load '{model}' version 1: Internal: "
    'TritonModelException: {reason}\\n\\nAt:\\n  /a/b.py(3): load\\n"\n'
)
LOADED = "2026-01-01T00:00:00Z I 1 model_lifecycle.cc:839] \"successfully loaded '{model}'\"\n"


def options(**given):
    return ServerOptions(grpc_port=0, http_port=0, metrics_port=0, exit_timeout_s=5, **given)


def refusing(model):
    """Composes a repository whose `model` raises at load."""

    def compose(artifacts, out, **given):
        write_repository(artifacts, out, **given)
        (out / model / "1" / "model.py").write_text(REFUSES)

    return compose


def answer(url, messages="Hello", **given):
    with vitrail.Client(url, **given) as client:
        return client.chat(messages, **ASKED).text


@pytest.fixture
def artifacts(exported):
    return exported("internvl2-tiny")


@pytest.fixture
def expected(artifacts):
    with Engine.load(artifacts, slots=1) as engine:
        return engine.chat("Hello", **ASKED).text


@pytest.mark.server
def test_text_is_answered_beside_a_vision_model_that_cannot_be_loaded(artifacts, expected):
    server = Server(
        artifacts,
        options=options(keep_going=True),
        settings=ServingSettings(threads=1),
        compose=refusing(wire.VISION_ENCODER),
    )
    with supervised(server):
        assert server.failed == {
            wire.VISION_ENCODER: "the weights are no weights; export again",
            wire.ENSEMBLE: "it needs vision_encoder",
        }
        assert server.watched == (wire.PROJECTOR, wire.DECODER)
        assert answer(server.grpc_url) == expected
        with pytest.raises(ServerError, match="does not serve this model"):
            answer(server.grpc_url, PICTURED)
        with pytest.raises(ServerError, match="'vision_encoder' is not ready"):
            answer(server.grpc_url, PICTURED, route="direct")
        assert answer(server.grpc_url) == expected
        with triton.InferenceServerClient(server.grpc_url) as client:
            assert client.is_server_live()
            assert not client.is_server_ready()
            assert client.is_model_ready(wire.DECODER)


@pytest.mark.server
def test_text_is_answered_beside_a_broken_engine_and_a_backend_that_is_not_there(
    artifacts, expected, tmp_path, caplog
):
    """As far as this machine goes: its Triton has no tensorrt backend, so the projector's config is Triton's to refuse."""
    broken = with_engines(artifacts, tmp_path / "broken")
    (broken / "projector.sm_90.engine").write_bytes(b"projector sm_9x")

    def compose(artifacts, out, *, settings, keep_going):
        write_repository(artifacts, out, settings=replace(settings, provider=Cpu()), keep_going=keep_going)
        stand_in(out / wire.DECODER)

    settings = ServingSettings(threads=1, target="tensorrt")
    with Server(broken, options=options(keep_going=True), settings=settings, compose=compose) as server:
        assert answer(server.grpc_url) == expected
        assert set(server.failed) == {wire.VISION_ENCODER, wire.PROJECTOR, wire.ENSEMBLE}
        assert all(server.failed.values())
        assert server.failed[wire.ENSEMBLE] == "it needs vision_encoder and projector"
    assert "does not match its hash" in caplog.text
    assert "needs Triton's backend 'tensorrt'" in caplog.text


@pytest.mark.server
def test_without_its_decoder_a_server_that_keeps_going_ends_with_the_decoder_s_reason(artifacts):
    server = Server(
        artifacts,
        options=options(keep_going=True),
        settings=ServingSettings(threads=1),
        compose=refusing(wire.DECODER),
    )
    with pytest.raises(ArtifactError, match="the weights are no weights"):
        server.__enter__()
    assert server.pid is None


@pytest.mark.server
def test_unless_told_to_keep_going_a_server_ends_and_says_how_to(artifacts):
    server = Server(
        artifacts,
        options=options(),
        settings=ServingSettings(threads=1),
        compose=refusing(wire.VISION_ENCODER),
    )
    with pytest.raises(ArtifactError, match=r"no weights; export again; with --keep-going"):
        server.__enter__()
    assert server.pid is None


LOGGED = FAILED.format(model="vision_encoder", reason="[artifact] no graph") + "".join(
    LOADED.format(model=model) for model in ("projector", "decoder")
)


def test_the_log_and_the_server_together_tell_what_is_missing_and_why():
    """The server knows better, where a log is told to be silent."""
    missing = log.missing_models(LOGGED, MODELS, is_ready=lambda _: False)
    assert missing == {"vision_encoder": "no graph", "internvl": "it needs vision_encoder"}
    assert not log.missing_models("", MODELS, is_ready=lambda _: True)
    assert log.missing_models("", ["internvl"], is_ready=lambda _: False) == {
        "internvl": "no reason is given"
    }


def test_a_start_ends_with_the_decoder_s_reason_or_else_tells_of_keep_going():
    both = LOGGED + FAILED.format(model="decoder", reason="[artifact] no table")
    assert str(log.start_error(LOGGED)).endswith("no graph; with --keep-going, what can be served is")
    assert str(log.start_error(both)) == "no table"
    assert log.failed_models(both + FAILED.format(model="decoder", reason="again")) == {
        "vision_encoder": "[artifact] no graph",
        "decoder": "[artifact] no table",
    }


def test_the_command_tells_what_failed_before_it_is_ready_for_text(artifacts, monkeypatch):
    class Half(Server):
        @property
        def failed(self):
            return {"projector": "engine [of another] version", "internvl": "it needs projector"}

    def serve(directory, *, options, settings, on_ready, **_):
        assert options.keep_going
        on_ready(Half(directory, options=options, settings=settings))

    monkeypatch.setattr("vitrail.triton.serve.serve", serve)
    result = CliRunner().invoke(app, ["serve", str(artifacts), "--keep-going"])
    assert result.exit_code == 0, result.output
    lines = result.stderr.splitlines()
    assert "failed: model 'projector': engine [of another] version" in lines
    assert any(line.startswith("ready for text alone: gRPC") for line in lines)
    assert any(line.startswith("ask:   vitrail ask -q QUESTION") for line in lines)


def test_a_repository_records_the_tensorrt_that_its_engines_need_and_the_command_prints_it(
    artifacts, tmp_path
):
    made, out = with_engines(artifacts, tmp_path / "engines"), tmp_path / "models"
    result = CliRunner().invoke(app, ["repository", str(made), "--out", str(out), "--target", "tensorrt"])
    assert result.exit_code == 0, result.stderr
    assert "needs: a Triton with TensorRT 10.13.3" in result.stderr
    assert "--exit-on-error=false" in result.stderr
    for model in (wire.VISION_ENCODER, wire.PROJECTOR):
        config = parse_config((out / model / "config.pbtxt").read_text(encoding="utf-8"))
        assert config.parameters[VERSION_PARAMETER].string_value == "10.13.3"


def test_engines_of_two_versions_are_refused_as_no_server_has_both(artifacts, tmp_path):
    made = with_engines(artifacts, tmp_path / "engines")
    manifest = load_manifest(made)
    vision, projector = manifest.engines
    older = projector.model_copy(update={"builder_version": "10.9.0"})
    manifest.model_copy(update={"engines": (vision, older)}).write(made)
    with pytest.raises(
        ArtifactError, match=r"vision_encoder by TensorRT 10\.13\.3 and projector by TensorRT 10\.9\.0"
    ):
        write_repository(made, tmp_path / "models", settings=ServingSettings(target="tensorrt"))


@pytest.fixture(scope="module")
def all_engines(exported, tmp_path_factory):
    """An export with engines of every stage, all by one TensorRT."""
    export = exported("internvl3-tiny", precision="float16", vision_precision="float16", dialect="standard")
    made = shutil.copytree(export, tmp_path_factory.mktemp("all") / "export")
    return made, with_all_engines(made)


@pytest.mark.parametrize("stage", ["decoder", "sampler"])
def test_the_decoder_s_engines_are_of_the_vision_models_version_where_they_are_used(
    all_engines, tmp_path, stage
):
    made, manifest = all_engines
    changed = [
        each.model_copy(update={"builder_version": "10.9.0"}) if each.stage == stage else each
        for each in manifest.engines
    ]
    manifest.model_copy(update={"engines": tuple(changed)}).write(made)
    settings = ServingSettings(target="tensorrt", provider=TensorRt())
    with pytest.raises(
        ArtifactError,
        match=rf"{stage} by TensorRT 10\.9\.0.* build them with one: vitrail engine .* --with tensorrt .*--decoder",
    ):
        write_repository(made, tmp_path / "models", settings=settings)
    write_repository(made, tmp_path / "models", settings=replace(settings, provider=Cuda()))
