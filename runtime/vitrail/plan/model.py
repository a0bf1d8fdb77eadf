"""What of a model and of its settings decides how much memory it takes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from vitrail.dtypes import BFLOAT16_TARGET, ENGINE_CACHE_BYTES
from vitrail.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vitrail.manifest import (
        DecoderContract,
        EngineBuilder,
        EngineRecord,
        EngineStage,
        Manifest,
        Stage,
        VisionContract,
    )

# What a model is served on. cuda: ONNX Runtime, tensorrt: engines, both with memory of their own; jetson: engines, in the
# memory that the GPU shares with the system.
Target: TypeAlias = Literal["cpu", "cuda", "tensorrt", "jetson"]
TARGETS: tuple[Target, ...] = ("cpu", "cuda", "tensorrt", "jetson")

STAGES: tuple[Stage, ...] = ("vision_encoder", "projector", "decoder")
# Patches along one side of a visual token, and channels of one attention head: the same in all published InternVL.
_SHUFFLE, _VISION_HEAD_DIM = 2, 64
_WEIGHT_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "int8": 1.0, "w8a8": 1.0, "int4": 0.5}
_SCALE_BLOCK = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """weights_bytes: of each stage as exported, and of `prefill` where prompts have a graph of their own; tiles_per_picture:
    the most that one picture makes, its thumbnail included. openvino: whether that runs vision instead of ONNX Runtime.
    engines: of TensorRT, which run their stages in place of the graphs.
    """

    name: str
    vision: VisionContract
    decoder: DecoderContract
    weights_bytes: Mapping[str, int]
    vision_heads: int
    intermediate_size: int
    tiles_per_picture: int
    openvino: bool = False
    engines: Mapping[EngineStage, EngineRecord] = field(default_factory=dict)

    @property
    def kv_bytes_per_token(self) -> int:
        if "decoder" not in self.engines:
            return self.decoder.kv_bytes_per_token
        return 2 * self.decoder.layers * self.decoder.kv_heads * self.decoder.head_dim * ENGINE_CACHE_BYTES

    def reserved(self, load: Load) -> Load:
        """What is taken for a load: engines have memory for what they were built for, from the start."""
        taken = load
        if vision := self.engines.get("vision_encoder"):
            taken = replace(taken, tiles_per_run=vision.max_tiles)
        if decoder := self.engines.get("decoder"):
            chunk = decoder.profile("prefill").inputs["inputs_embeds"].max[1]
            context = max(taken.context_tokens, decoder.capacity)  # more than that needs an engine for more
            taken = replace(taken, context_tokens=context, prefill_chunk=chunk)
        return taken

    @property
    def decoder_form(self) -> str:
        """In words: `int4, w8a8 prompts, int8 cache`."""
        prompts = ", w8a8 prompts" if self.decoder.prefill == "w8a8" else ""
        cache = ", int8 cache" if self.decoder.cache == "int8" else ""
        return self.decoder.precision + prompts + cache

    @property
    def vision_form(self) -> str:
        return self.vision.precision + (" on openvino" if self.openvino else "")

    @property
    def positions(self) -> int:
        """Of one tile in the vision encoder: patches and the class token."""
        return self.vision.tokens_per_tile * _SHUFFLE**2 + 1

    @property
    def vision_size(self) -> int:
        return self.vision.feature_size // _SHUFFLE**2


def model_of(
    manifest: Manifest,
    target: Target = "cpu",
    *,
    openvino: bool = False,
    builder: EngineBuilder = "tensorrt",
    gpu: str | None = None,
) -> Model:
    """From an export, by the sizes of its files: of TensorRT's engines where the target runs these. openvino: as in Model;
    builder, gpu: which engines, as in `engines_of`.

    Raises OptionError for an export that the target cannot run.
    """
    check_target(manifest, target, builder=builder, gpu=gpu)
    engines = engines_of(manifest, builder, gpu=gpu) if target in ("tensorrt", "jetson") else {}
    return described(manifest, openvino=openvino, engines=engines)


def described(
    manifest: Manifest, *, openvino: bool = False, engines: Mapping[EngineStage, EngineRecord] | None = None
) -> Model:
    """As `model_of`, whatever it is run on."""
    engines = engines or {}
    sizes = {name: artifact.size_bytes for name, artifact in manifest.artifacts.items()}
    graphs = (*STAGES, *manifest.decoder.graphs[1:])
    weights: dict[str, int] = {name: sizes[name] + sizes.get(f"{name}.onnx.data", 0) for name in graphs}
    weights |= {stage: sizes[engine.artifact] for stage, engine in engines.items()}
    return Model(
        name=manifest.name,
        vision=manifest.vision,
        decoder=manifest.decoder,
        weights_bytes=weights,
        vision_heads=max(1, manifest.vision.feature_size // _SHUFFLE**2 // _VISION_HEAD_DIM),
        intermediate_size=intermediate_size(manifest.decoder, sizes["decoder.onnx.data"]),
        tiles_per_picture=manifest.prompt.max_tiles + manifest.prompt.thumbnail,
        openvino=openvino,
        engines=engines,
    )


def engines_of(
    manifest: Manifest, builder: EngineBuilder, *, gpu: str | None
) -> dict[EngineStage, EngineRecord]:
    """Of each stage, the engine that runs on this GPU, such as sm_87; where None is told, the largest, so that any fits."""
    fitting = [each for each in manifest.engines if each.builder == builder and gpu in (None, *each.targets)]
    if gpu is None:
        fitting.sort(key=lambda engine: manifest.artifacts[engine.artifact].size_bytes)
    return {engine.stage: engine for engine in fitting}


def check_target(
    manifest: Manifest, target: Target, *, builder: EngineBuilder = "tensorrt", gpu: str | None = None
) -> None:
    """Raise OptionError for a form that only CPUs compute, where the target is a GPU and no engine takes its place, and for
    bfloat16 on a CPU, or on a `gpu` without.
    """
    if target in ("cpu", "cuda"):
        for contract in (manifest.vision, manifest.decoder):
            check_arithmetic(contract, gpu=None if target == "cpu" else gpu or "sm_80")
    if target == "cpu":
        return
    engines = {each.stage for each in manifest.engines if each.builder == builder and target != "cuda"}
    if manifest.vision.precision in ("int8", "int8-static") and "vision_encoder" not in engines:
        raise OptionError(
            f"vision precision {manifest.vision.precision} is for CPUs; export with --vision-precision fp16 to serve on a GPU"
        )
    if manifest.decoder.precision == "w8a8" and "decoder" not in engines:
        raise OptionError(
            "precision w8a8 is for CPUs; export with --precision int4 or fp16 to serve on a GPU"
        )


def check_arithmetic(contract: VisionContract | DecoderContract, *, gpu: str | None) -> None:
    """Raise OptionError for bfloat16 where ONNX Runtime has no kernels for it: on a CPU (None), or a GPU older than sm_80."""
    if contract.dtype != "bfloat16" or (gpu and int(gpu.removeprefix("sm_")) >= BFLOAT16_TARGET):
        return
    vision = hasattr(contract, "tile_size")
    part = "vision encoder and projector compute" if vision else "language model computes"
    option = "--vision-precision" if vision else "--precision and --activations"
    where = f"this GPU is {gpu}" if gpu else "this is a CPU"
    cure = "" if gpu else "serve it with --provider cuda (vitrail serve: --target cuda), or "
    raise OptionError(
        f"{part} in bf16, which ONNX Runtime does on GPUs of sm_{BFLOAT16_TARGET} or newer, and {where}; "
        f"{cure}export with another {option}"
    )


def intermediate_size(decoder: DecoderContract, size_bytes: int) -> int:
    """The width of the MLP, which no manifest tells: what the other matrices leave of the weights' bytes."""
    element = 4 if decoder.dtype == "float32" else 2
    scale = element / _SCALE_BLOCK if decoder.precision in ("int8", "int4") else 0.0
    per_weight = _WEIGHT_BYTES[decoder.precision] + scale
    head = 1 + scale if "lm_head" in decoder.sensitive else per_weight
    hidden, rope = decoder.hidden_size, decoder.context_tokens * decoder.head_dim * element
    left = size_bytes - rope - hidden * decoder.vocab_size * head
    attention = 2 * hidden * (hidden + decoder.kv_heads * decoder.head_dim)
    return max(hidden, round((left / per_weight / decoder.layers - attention) / (3 * hidden)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much is taken on at once; the fields are those of `vitrail.decoder.Settings` and of a server's settings."""

    slots: int
    context_tokens: int
    prefill_chunk: int = 512
    tiles_per_run: int = 8
    feature_cache_bytes: int = 0

    def __post_init__(self) -> None:
        for name in ("slots", "context_tokens", "prefill_chunk", "tiles_per_run"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.feature_cache_bytes < 0:
            raise OptionError(f"feature_cache_bytes is {self.feature_cache_bytes}; give 0 (none) or more")
