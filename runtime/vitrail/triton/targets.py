"""Model configurations for GPUs: the vision models on Triton's own backends, the decoder beside them.

Field names: triton-inference-server/common protobuf/model_config.proto; parameters: the READMEs of onnxruntime_backend,
tensorrt_backend and python_backend.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from vitrail.client import wire
from vitrail.dtypes import port_dtype
from vitrail.engine_files import engine_file
from vitrail.errors import ArtifactError, OptionError
from vitrail.manifest import DType, EngineRecord, EngineStage, Manifest, Stage
from vitrail.plan.model import check_target
from vitrail.providers import Cpu, Cuda, Provider, TensorRt
from vitrail.rebuild import engine_command, unfit
from vitrail.triton.question import TILES_REUSED, VISION_STARTED
from vitrail.triton.vision_models import VisionModels

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from vitrail.plan.model import Target

log = logging.getLogger(__name__)

VERSION_PARAMETER = "tensorrt_version"
"""Of an engine's model: for who looks for a container; Triton reads it not."""
VISION: tuple[Stage, ...] = ("vision_encoder", "projector")
WRITING: tuple[EngineStage, ...] = ("decoder", "sampler")
Backend: TypeAlias = Literal["onnxruntime", "tensorrt"]
_MODEL_FILES: dict[Backend, str] = {"onnxruntime": "model.onnx", "tensorrt": "model.plan"}
_TYPES: dict[str, str] = {"uint8": "TYPE_UINT8", "float16": "TYPE_FP16", "float32": "TYPE_FP32"}
_GRAPHS_TILES = 13
"""CUDA graphs are captured for so many tiles, one graph for each number: larger runs keep a GPU busy without."""
_CUDA_TILES = 13
"""A picture's tiles by the checkpoints' defaults; ONNX Runtime has no limit of its own."""


@dataclass(frozen=True, slots=True)
class Served:
    """One vision model on one of Triton's own backends.

    files: names in its version folder, and what they hold. version: of the TensorRT that built an engine, and alone runs it.
    """

    stage: Stage
    backend: Backend
    dtype: DType
    batch_tiles: int
    best_tiles: int
    files: Mapping[str, Path]
    version: str | None = None


def default_provider(manifest: Manifest, target: Target) -> Provider:
    """What runs the decoder: its TensorRT engine where there is one, else ONNX Runtime."""
    if target == "cpu":
        return Cpu()
    has_engine = any(each.stage == "decoder" and each.builder == "tensorrt" for each in manifest.engines)
    return TensorRt() if target != "cuda" and has_engine else Cuda()


def served_models(
    manifest: Manifest,
    artifacts: Path,
    *,
    target: Target,
    tiles_per_run: int,
    gpu: str | None = None,
    keep_going: bool = False,
) -> tuple[Served, ...]:
    """The vision models that Triton's own backends run on a GPU; none for the CPU, where our adapters do.

    gpu: the compute capability that engines are for, such as sm_86. keep_going: an engine that is missing or damaged is
    left out with a warning, so that Triton has one model less.

    Raises ArtifactError for engines that are missing, damaged or not Triton's, OptionError for an ambiguous gpu or an
    export in a form that is for CPUs.
    """
    if target == "cpu":
        return ()
    check_target(manifest, target)
    if target == "cuda":
        return tuple(
            _graph(manifest, artifacts, stage, tiles=max(tiles_per_run, _CUDA_TILES)) for stage in VISION
        )
    return tuple(_engine(manifest, artifacts, stage, gpu=gpu, keep_going=keep_going) for stage in VISION)


def tensorrt_version(
    manifest: Manifest, artifacts: Path, *, target: Target, provider: Provider, gpu: str | None = None
) -> str | None:
    """The version of TensorRT that the server must have to run the vision models' engines, and the decoder's where that is
    its provider; None where it needs none.

    Raises ArtifactError for engines of several versions, as no server has both, and for one that is missing.
    """
    if target not in ("tensorrt", "jetson"):
        return None
    stages = VISION if not isinstance(provider, TensorRt) or provider.rtx else (*VISION, *WRITING)
    records = [_record(manifest, artifacts, stage, gpu=gpu) for stage in stages]
    if len({each.builder_version for each in records}) > 1:
        built = " and ".join(f"{each.stage} by TensorRT {each.builder_version}" for each in records)
        raise ArtifactError(
            f"the engines were built by several versions ({built}), and a server has one; build them with one: "
            f"{manifest.rebuild(records[0], artifacts)}"
        )
    return records[0].builder_version


def _graph(manifest: Manifest, artifacts: Path, stage: Stage, *, tiles: int) -> Served:
    vision = manifest.vision
    files = {_MODEL_FILES["onnxruntime"]: artifacts / manifest.artifacts[stage].path}
    weights = manifest.artifacts.get(f"{stage}.onnx.data")
    if weights is not None:
        files[weights.path] = artifacts / weights.path
    return Served(stage, "onnxruntime", port_dtype(vision.dtype), tiles, tiles, files)


def _engine(
    manifest: Manifest, artifacts: Path, stage: Stage, *, gpu: str | None, keep_going: bool
) -> Served:
    record = _record(manifest, artifacts, stage, gpu=gpu)
    (shapes,) = record.profiles[0].inputs.values()
    try:
        files = {_MODEL_FILES["tensorrt"]: engine_file(manifest, record, artifacts)}
    except ArtifactError as error:
        if not keep_going:
            raise
        log.warning("%s", error)
        files = {}
    version = record.builder_version
    return Served(stage, "tensorrt", record.dtype, record.max_tiles, shapes.opt[0], files, version)


def _record(manifest: Manifest, artifacts: Path, stage: EngineStage, *, gpu: str | None) -> EngineRecord:
    """Triton's backend links TensorRT itself: engines of TensorRT for RTX are another format."""
    if gpu is not None:
        return manifest.engine(stage, "tensorrt", gpu, directory=artifacts)
    found = [each for each in manifest.engines if each.stage == stage and each.builder == "tensorrt"]
    targets = sorted({target for each in found for target in each.targets})
    if not found:
        command = engine_command(stage, "tensorrt", "current", directory=artifacts, unfit=unfit(manifest))
        raise ArtifactError(
            f"there is no TensorRT engine of {stage} in '{artifacts}', and Triton runs no other; build one on the GPU "
            f"that it is for: {command}"
        )
    if len(targets) > 1:
        raise OptionError(f"there are engines of {stage} for {', '.join(targets)}; choose one with --gpu")
    return found[-1]


def vision_models(served: tuple[Served, ...]) -> VisionModels | None:
    """As the decoder calls them; None for our own adapters."""
    if not served:
        return None
    return VisionModels(
        batch_tiles=min(model.batch_tiles for model in served), embeds=_outputs("projector")[0], reports=False
    )


def _outputs(stage: Stage) -> tuple[str, ...]:
    """Of the exported graph."""
    return ("features",) if stage == "vision_encoder" else ("embeds",)


def vision_config(model: Served, manifest: Manifest, *, provider: Provider) -> Any:
    """A ModelConfig whose batch dimension is the tile."""
    config = _new_config(model.stage, backend=model.backend)
    config.default_model_filename = _MODEL_FILES[model.backend]
    config.max_batch_size = model.batch_tiles
    inputs, outputs = _tensors(model, manifest)
    _add_tensor(config.input, *inputs)
    _add_tensor(config.output, *outputs)
    config.instance_group.add(count=1, kind="KIND_GPU", gpus=[_device(provider)])
    batching = config.dynamic_batching
    batching.preferred_batch_size.extend(sorted({model.best_tiles, model.batch_tiles}))
    batching.default_queue_policy.timeout_action = batching.default_queue_policy.REJECT
    batching.default_queue_policy.allow_timeout_override = True
    batching.default_queue_policy.max_queue_size = 256
    if model.version is not None:
        config.parameters[VERSION_PARAMETER].string_value = model.version
    if model.backend == "tensorrt":
        _add_graphs(config, inputs, best_tiles=min(_GRAPHS_TILES, model.batch_tiles))
    else:
        _add_cuda_options(config, provider)
    return config


def _tensors(
    model: Served, manifest: Manifest
) -> tuple[tuple[str, str, list[int]], tuple[str, str, list[int]]]:
    """(name, type, dims without the batch) of the one input and the one output."""
    vision = manifest.vision
    features = ("features", _TYPES[model.dtype], [vision.tokens_per_tile, vision.feature_size])
    if model.stage == "vision_encoder":
        return (wire.TILES, "TYPE_UINT8", [3, vision.tile_size, vision.tile_size]), features
    embeds = [vision.tokens_per_tile, manifest.decoder.hidden_size]
    return features, (_outputs("projector")[0], _TYPES[model.dtype], embeds)


def _add_graphs(config: Any, tensor: tuple[str, str, list[int]], *, best_tiles: int) -> None:
    name, _, dims = tensor
    config.optimization.cuda.graphs = True
    config.optimization.cuda.output_copy_stream = True
    for tiles in range(1, best_tiles + 1):
        spec = config.optimization.cuda.graph_spec.add(batch_size=tiles)
        spec.input[name].dim.extend(dims)


def _add_cuda_options(config: Any, provider: Provider) -> None:
    accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="cuda")
    accelerator.parameters["arena_extend_strategy"] = "kSameAsRequested"
    accelerator.parameters["cudnn_conv_algo_search"] = "HEURISTIC"
    if isinstance(provider, Cuda) and provider.memory_limit_bytes is not None:
        accelerator.parameters["gpu_mem_limit"] = str(provider.memory_limit_bytes)


def decoder_config(config: Any, served: tuple[Served, ...], *, target: Target, provider: Provider) -> Any:
    """The CPU's ModelConfig `config`, changed: embeds as the projector gives them, tensors left on the GPU.

    On a Jetson the python backend takes tensors from host memory only.
    """
    embeds = next(tensor for tensor in config.input if tensor.name == wire.IMAGE_EMBEDS)
    embeds.data_type = _type_number(config, _TYPES[served[-1].dtype])
    keep = [tensor for tensor in config.input if tensor.name not in (VISION_STARTED, TILES_REUSED)]
    del config.input[:]
    config.input.extend(keep)
    del config.instance_group[:]
    config.instance_group.add(count=1, kind="KIND_GPU", gpus=[_device(provider)])
    only_host = "yes" if target == "jetson" else "no"
    config.parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value = only_host
    return config


def ensemble_config(config: Any) -> Any:
    """The CPU's ModelConfig `config`, changed to the tensors that Triton's own backends give."""
    for step in config.ensemble_scheduling.step:
        for tensors in (step.input_map, step.output_map):
            for name in (VISION_STARTED, TILES_REUSED):
                if name in tensors:
                    del tensors[name]
        if step.model_name == wire.PROJECTOR:
            step.output_map[_outputs("projector")[0]] = step.output_map.pop(wire.IMAGE_EMBEDS)
    return config


def parse_config(text: str) -> Any:
    """A config.pbtxt as a message of Triton's schema."""
    from google.protobuf import text_format  # noqa: PLC0415 - only for who writes configurations
    from tritonclient.grpc import model_config_pb2  # noqa: PLC0415

    return text_format.Parse(text, model_config_pb2.ModelConfig())


def config_text(config: Any) -> str:
    from google.protobuf import text_format  # noqa: PLC0415

    text: str = text_format.MessageToString(config)
    return text


def file_names(served: tuple[Served, ...]) -> Iterator[tuple[str, Path]]:
    """Paths in a repository and the artifacts that lie there."""
    for model in served:
        for name, source in model.files.items():
            yield f"{model.stage}/1/{name}", source


def _new_config(name: str, *, backend: str) -> Any:
    config = parse_config("")
    config.name, config.backend = name, backend
    return config


def _add_tensor(tensors: Any, name: str, kind: str, dims: list[int]) -> None:
    tensors.add(name=name, data_type=kind, dims=dims)


def _type_number(config: Any, kind: str) -> int:
    number: int = config.input[0].DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_name[kind].number
    return number


def _device(provider: Provider) -> int:
    return 0 if isinstance(provider, Cpu) else provider.device_id
