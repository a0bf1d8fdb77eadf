"""Repositories for GPUs: what Triton's schema reads, and what fits together, without a GPU."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tests.conftest import REFERENCE
from tests.repository.engines import MAX_TILES, with_engines
from tests.repository.stand_ins import stand_in
from tritonclient.grpc import model_config_pb2 as pb
from typer.testing import CliRunner

import vitrail
from vitrail.cli import app
from vitrail.client import wire
from vitrail.engine import Engine
from vitrail.errors import ArtifactError, InvalidInput, OptionError, ServerError
from vitrail.manifest import load_manifest
from vitrail.providers import Cpu, Cuda, TensorRt
from vitrail.settings import Settings
from vitrail.triton.options import ServerOptions
from vitrail.triton.repository import MODELS, ServingSettings, contract, write_repository
from vitrail.triton.server import Server
from vitrail.triton.targets import default_provider, parse_config
from vitrail.triton.vision_models import PARAMETER, vision_models_from_json

ASKED = {"max_tiles": 4, "thumbnail": False, "max_tokens": 6}
GPU_TARGETS = ("cuda", "tensorrt", "jetson")


@pytest.fixture(scope="module")
def artifacts(exported, tmp_path_factory):
    return with_engines(exported("internvl2-tiny"), tmp_path_factory.mktemp("engines") / "artifacts")


@pytest.fixture(params=GPU_TARGETS)
def written(request, artifacts, tmp_path):
    """(target, repository)"""
    return request.param, write_repository(
        artifacts, tmp_path / "models", settings=ServingSettings(target=request.param)
    )


def read(directory, model):
    return parse_config((directory / model / "config.pbtxt").read_text(encoding="utf-8"))


def shaped(tensors, *, batched):
    """(type, dims) of each tensor by name, with the batch dimension."""
    return {
        tensor.name: (tensor.data_type, [-1, *tensor.dims] if batched else list(tensor.dims))
        for tensor in tensors
    }


def fit(one, other):
    """Whether Triton takes one tensor for the other: equal types, and dims equal or unknown."""
    return (
        one[0] == other[0]
        and len(one[1]) == len(other[1])
        and all(a == b or -1 in (a, b) for a, b in zip(one[1], other[1], strict=True))
    )


def test_every_step_of_the_ensemble_gets_what_the_one_before_gives(written):
    _, repository = written
    configs = {model: read(repository, model) for model in MODELS}
    assert all(config.name == model for model, config in configs.items())
    ensemble = configs[wire.ENSEMBLE]
    flowing = shaped(ensemble.input, batched=False)
    for step in ensemble.ensemble_scheduling.step:
        config = configs[step.model_name]
        inputs, outputs = (
            shaped(side, batched=config.max_batch_size > 0) for side in (config.input, config.output)
        )
        assert all(fit(flowing[source], inputs[name]) for name, source in step.input_map.items())
        optional = {tensor.name for tensor in config.input if tensor.optional}
        assert set(inputs) - optional <= set(step.input_map)
        flowing |= {target: outputs[name] for name, target in step.output_map.items()}
    assert {tensor.name for tensor in ensemble.output} <= set(flowing)


def test_the_vision_models_are_on_the_gpu_and_take_a_picture_s_tiles_at_once(written, artifacts):
    target, repository = written
    backend, file = ("onnxruntime", "model.onnx") if target == "cuda" else ("tensorrt", "model.plan")
    for model in (wire.VISION_ENCODER, wire.PROJECTOR):
        config = read(repository, model)
        assert (config.backend, config.default_model_filename) == (backend, file)
        assert (repository / model / "1" / file).is_file()
        assert not (repository / model / "1" / "model.py").exists()
        (group,) = config.instance_group
        assert (group.kind, list(group.gpus)) == (pb.ModelInstanceGroup.KIND_GPU, [0])
        assert config.max_batch_size == (13 if target == "cuda" else MAX_TILES)
        preferred = config.dynamic_batching.preferred_batch_size
        assert 13 in preferred
        assert max(preferred) <= config.max_batch_size
    data = repository / wire.VISION_ENCODER / "1" / "vision_encoder.onnx.data"
    assert data.exists() == (target == "cuda")


def test_cuda_graphs_are_captured_for_each_number_of_tiles_of_a_picture(artifacts, tmp_path):
    repository = write_repository(artifacts, tmp_path / "models", settings=ServingSettings(target="tensorrt"))
    cuda = read(repository, wire.VISION_ENCODER).optimization.cuda
    assert cuda.graphs
    assert [spec.batch_size for spec in cuda.graph_spec] == list(range(1, 14))
    size = load_manifest(artifacts).vision.tile_size
    assert all(list(spec.input[wire.TILES].dim) == [3, size, size] for spec in cuda.graph_spec)


def test_onnxruntime_s_options_are_those_of_the_provider(artifacts, tmp_path):
    settings = ServingSettings(target="cuda", provider=Cuda(device_id=1, memory_limit_bytes=1 << 30))
    repository = write_repository(artifacts, tmp_path / "models", settings=settings)
    config = read(repository, wire.PROJECTOR)
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "cuda"
    assert accelerator.parameters["gpu_mem_limit"] == str(1 << 30)
    assert list(config.instance_group[0].gpus) == [1]


def test_the_decoder_s_tensors_stay_on_the_gpu_but_on_a_jetson(written):
    target, repository = written
    config = read(repository, wire.DECODER)
    only_host = config.parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value
    assert only_host == ("yes" if target == "jetson" else "no")
    vision = vision_models_from_json(config.parameters[PARAMETER].string_value)
    assert (vision.embeds, vision.reports) == ("embeds", False)
    told = wire.contract_from_json(config.parameters[wire.CONTRACT_PARAMETER].string_value)
    assert told.ensemble_tiles == vision.batch_tiles == read(repository, wire.PROJECTOR).max_batch_size


def test_a_repository_for_the_cpu_has_no_gpu_in_it(artifacts, tmp_path):
    repository = write_repository(artifacts, tmp_path / "models")
    for model in MODELS:
        assert all(
            group.kind == pb.ModelInstanceGroup.KIND_CPU for group in read(repository, model).instance_group
        )
    told = read(repository, wire.DECODER).parameters[wire.CONTRACT_PARAMETER].string_value
    assert wire.contract_from_json(told).ensemble_tiles is None


def test_the_artifacts_may_lie_elsewhere_for_the_server(artifacts, tmp_path):
    settings = ServingSettings(target="cuda")
    repository = write_repository(artifacts, tmp_path / "models", settings=settings, mounted_at="/artifacts")
    assert read(repository, wire.DECODER).parameters[wire.ARTIFACTS_PARAMETER].string_value == "/artifacts"


def test_engines_that_triton_cannot_run_are_refused_with_the_command_that_builds_others(exported, tmp_path):
    plain = exported("internvl2-tiny")
    rtx = with_engines(plain, tmp_path / "rtx", builder="tensorrt-rtx")
    for directory in (plain, rtx):
        with pytest.raises(ArtifactError, match=r"vitrail engine .* --with tensorrt --targets current"):
            write_repository(directory, tmp_path / "models", settings=ServingSettings(target="tensorrt"))
    assert not (tmp_path / "models").exists()


def test_of_several_engines_one_is_to_be_chosen(exported, tmp_path):
    both = with_engines(exported("internvl2-tiny"), tmp_path / "both", targets=("sm_87", "sm_90"))
    settings = ServingSettings(target="tensorrt")
    with pytest.raises(
        OptionError, match="engines of vision_encoder for sm_87, sm_90; choose one with --gpu"
    ):
        write_repository(both, tmp_path / "models", settings=settings)
    with pytest.raises(ArtifactError, match="sm_100"):
        write_repository(both, tmp_path / "models", settings=replace(settings, gpu="sm_100"))
    out = write_repository(both, tmp_path / "models", settings=replace(settings, gpu="sm_87"))
    assert (out / wire.PROJECTOR / "1" / "model.plan").read_bytes() == b"projector sm_87"


def test_a_damaged_engine_is_refused_before_anything_is_written(exported, tmp_path):
    broken = with_engines(exported("internvl2-tiny"), tmp_path / "broken")
    (broken / "projector.sm_90.engine").write_bytes(b"projector sm_9x")
    with pytest.raises(ArtifactError, match="does not match its hash"):
        write_repository(broken, tmp_path / "models", settings=ServingSettings(target="jetson"))


@pytest.mark.parametrize("precision", ["int8", "int8-static"])
def test_int8_vision_is_for_cpus(exported, tmp_path, precision):
    with pytest.raises(OptionError, match=f"{precision} is for CPUs; export with --vision-precision fp16"):
        write_repository(
            exported("internvl2-tiny", vision_precision=precision, calibration=REFERENCE / "images"),
            tmp_path / "models",
            settings=ServingSettings(target="cuda"),
        )


@pytest.mark.parametrize(
    ("precision", "provider", "words"),
    [
        ("int8", "openvino", "provider openvino has no kernel for, DynamicQuantizeMatMul"),
        ("bfloat16", "cpu", "vision encoder and projector compute in bf16"),
    ],
)
def test_vision_that_the_provider_does_not_compute_is_refused(exported, tmp_path, precision, provider, words):
    directory = exported("internvl2-tiny", precision="float32", vision_precision=precision)
    asked = ["repository", str(directory), "--out", str(tmp_path / "models"), "--provider", provider]
    refused = CliRunner().invoke(app, asked)
    assert refused.exit_code == 2
    assert words in refused.stderr
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("target", ["cuda", "tensorrt"])
def test_int8_products_are_for_cpus(exported, tmp_path, target):
    with pytest.raises(OptionError, match="w8a8 is for CPUs; export with --precision int4 or fp16"):
        write_repository(
            exported("internvl2-tiny", precision="w8a8"),
            tmp_path / "models",
            settings=ServingSettings(target=target),
        )
    assert not (tmp_path / "models").exists()


def test_the_decoder_runs_on_its_engine_where_there_is_one(artifacts):
    manifest = load_manifest(artifacts)
    assert [default_provider(manifest, target) for target in ("cpu", *GPU_TARGETS)] == [
        Cpu(),
        Cuda(),
        Cuda(),
        Cuda(),
    ]
    decoder = manifest.engines[0].model_copy(update={"stage": "decoder"})
    manifest = manifest.model_copy(update={"engines": (*manifest.engines, decoder)})
    assert [default_provider(manifest, target) for target in GPU_TARGETS] == [Cuda(), TensorRt(), TensorRt()]


def test_the_command_writes_it_and_says_what_to_run(artifacts, tmp_path):
    result = CliRunner().invoke(
        app, ["repository", str(artifacts), "--out", str(tmp_path / "models"), "--target", "jetson"]
    )
    assert result.exit_code == 0, result.stderr
    assert "tritonserver --model-repository=" in result.stderr
    assert read(tmp_path / "models", wire.PROJECTOR).backend == "tensorrt"
    with pytest.raises(OptionError, match="target 'tpu' is unknown; it is one of cpu, cuda"):
        ServingSettings(target="tpu")


def test_only_the_decoder_has_a_process_where_triton_runs_the_vision_models(artifacts):
    assert Server(artifacts, settings=ServingSettings(target="tensorrt")).watched == (wire.DECODER,)


def test_a_triton_without_the_backend_is_refused_before_it_starts(artifacts):
    server = Server(artifacts, settings=ServingSettings(target="cuda", provider=Cpu()))
    with pytest.raises(
        ServerError, match=r"'projector' needs Triton's backend 'onnxruntime', .* has python; serve in"
    ):
        server.start()
    assert server.pid is None


@pytest.mark.server
def test_triton_s_own_backends_answer_as_our_adapters_do(exported, tmp_path):
    """With stand-ins for the backends, which Triton's ensemble and our decoder know by their configurations only."""
    source = exported("internvl2-tiny")
    settings = ServingSettings(decoder=Settings(slots=2), threads=1, target="cuda")

    def compose(artifacts, out, *, settings, keep_going):
        write_repository(artifacts, out, settings=replace(settings, provider=Cpu()), keep_going=keep_going)
        for model in MODELS:
            stand_in(out / model)

    options = ServerOptions(grpc_port=0, http_port=0, metrics_port=0, exit_timeout_s=5)
    pictures = [picture(seed) for seed in range(4)]  # of four tiles each
    with Server(source, options=options, settings=settings, compose=compose) as server:
        answers = [ask(server, pictures[:1], route=route) for route in ("ensemble", "direct")]
        split = ask(server, pictures, route="auto")  # more tiles than the ensemble takes
        with pytest.raises(InvalidInput, match="this server's ensemble takes 13 in one request"):
            ask(server, pictures, route="ensemble")
    with Engine.load(source, slots=1) as engine:
        expected = [engine.chat(question(given), **ASKED).text for given in (pictures[:1], pictures)]
    assert [*answers, split] == [expected[0], expected[0], expected[1]]


def picture(seed):
    noise = np.random.default_rng(seed).integers(0, 255, (80, 320, 3), np.uint8)
    return Image.fromarray(noise)


def question(pictures):
    images = [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*images, {"type": "text", "text": "What is it?"}]}]


def ask(server, pictures, *, route):
    with vitrail.Client(server.grpc_url, route=route) as client:
        return client.chat(question(pictures), **ASKED).text


def test_vision_models_that_were_edited_by_hand_are_refused():
    for text in ("", "[]", json.dumps({"colour": 1})):
        with pytest.raises(OptionError, match="write the repository again"):
            vision_models_from_json(text)


def test_the_contract_of_a_server_tells_the_ensemble_s_limit(artifacts):
    manifest = load_manifest(artifacts)
    assert contract(manifest, ServingSettings(), ensemble_tiles=7).ensemble_tiles == 7


def test_the_contract_tells_what_a_cpu_s_decoder_hands_on_at_once(artifacts, monkeypatch):
    monkeypatch.setattr("vitrail.runs._BUSY_FEATURES", 1)
    manifest = load_manifest(artifacts)
    told = [contract(manifest, ServingSettings(provider=each)).look_tiles for each in (Cpu(), Cuda())]
    assert told == [1, None]
