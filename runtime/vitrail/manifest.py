"""manifest.json: the whole contract between an export and the runtime. Versioned, validated, hashed."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from vitrail.artifact_files import check_files, check_hashes
from vitrail.dtypes import CACHE_ELEMENT_BYTES, Arithmetic
from vitrail.errors import ArtifactError
from vitrail.rebuild import engine_command, unfit

FILENAME = "manifest.json"
VERSION = 1

Dialect = Literal["ort", "standard"]
DType = Literal["float32", "float16"]
Precision = Literal["float32", "float16", "bfloat16", "int8", "w8a8", "int4"]
Prefill = Literal["same", "w8a8"]
VisionPrecision = Literal["float32", "float16", "bfloat16", "int8", "int8-static"]
CachePrecision = Literal["float", "int8"]
TablePrecision = Literal["float", "int8", "int4"]
Quantizer = Literal["rtn", "gptq"]
Sensitive = Literal["lm_head", "first", "last", "v", "down"]
Stage = Literal["vision_encoder", "projector", "decoder"]
EngineStage = Stage | Literal["sampler"]
EngineBuilder = Literal["tensorrt", "tensorrt-rtx"]
EnginePrecision = Literal["fp16", "bf16", "fp8", "int8"]
Judge = Literal["onnxruntime", "emulation", "pytorch"]
TemplateName = Literal["internlm2-chat", "Hermes-2", "internvl2_5", "phi3-chat"]


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or ".." in parts or parts[0] == "/":
        raise PydanticCustomError(
            "outside", "'{path}' is no path in the export; it must be relative, without '..'", {"path": path}
        )
    return path


RelativePath = Annotated[str, AfterValidator(_inside)]
"""Of a file beside the manifest, or in a folder there."""


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Artifact(Record):
    """One file of the export, by its path relative to the manifest."""

    path: RelativePath
    sha256: str
    size_bytes: int = Field(ge=0)


class VisionContract(Record):
    """vision_encoder.onnx: `tiles` uint8 [n, 3, tile_size, tile_size] -> `features` [n, tokens_per_tile, feature_size].
    projector.onnx: `features` -> `embeds` [n, tokens_per_tile, hidden_size]. One dynamic axis, n. Both of
    `dtype`, in which is computed; of float32 where that is bfloat16.
    int8 quantizes activations as they come, over a whole run; int8-static by what calibration pictures caused, but for the
    modules `spared`, such as vision.layers.23.mlp, whose products stay in float.
    """

    precision: VisionPrecision
    spared: tuple[str, ...] = ()
    dtype: Arithmetic
    dialect: Dialect
    tile_size: int = Field(gt=0)
    tokens_per_tile: int = Field(gt=0)
    feature_size: int = Field(gt=0)


class DecoderContract(Record):
    """decoder.onnx, one step over a ragged batch of B rows, S new tokens each (right-padded).

    Inputs: `inputs_embeds` [B, S, hidden_size] of `dtype`, float32 where that is bfloat16; in dialect standard `past_lengths` int32 [B], tokens already
    cached; in dialect ort `last_positions` int32 [B], past length + S - 1, and `total_length` int32 [], tokens of the longest
    row after the step (a device takes it from host memory; it may be more, up to the capacity);
    `logit_positions` int64 [m], indices into the flattened [B * S] positions; `past.{i}.key`, `past.{i}.value` [B, kv_heads, capacity, head_dim] of `dtype`.
    Outputs: `logits` float32 [m, vocab_size]; `present.{i}.key|value`, the same buffers, written in place.
    `chunked_batch` tells whether B > 1 is allowed where S > 1 and something is cached.
    `cache` int8: keys and values are int8 instead, by scales inside the graph. `embeddings`: of the table, whose scales are
    a file of their own where it is int8 or int4. `quantizer` made the integer weights. int8 and int4 are weight-only; in w8a8 matrix products are
    in int8. What is `sensitive` of int4 and w8a8 is in int8. `prefill` w8a8: prompts are read by a graph of their own,
    prefill.onnx, with the same inputs and outputs.
    """

    precision: Precision
    prefill: Prefill = "same"
    dtype: Arithmetic
    cache: CachePrecision = "float"
    embeddings: TablePrecision = "float"
    quantizer: Quantizer = "rtn"
    sensitive: tuple[Sensitive, ...] = ()
    dialect: Dialect
    chunked_batch: bool
    layers: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    context_tokens: int = Field(gt=0)

    @property
    def graphs(self) -> tuple[Literal["decoder", "prefill"], ...]:
        """The artifacts that compute the language model."""
        return ("decoder",) if self.prefill == "same" else ("decoder", "prefill")

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * CACHE_ELEMENT_BYTES[self.cache_dtype]

    @property
    def cache_dtype(self) -> Arithmetic | Literal["int8"]:
        return "int8" if self.cache == "int8" else self.dtype


class TokenizerContract(Record):
    """How text becomes ids. `special` maps every special token's string to its id; `stop_ids` end an answer."""

    kind: Literal["sentencepiece", "tokenizers"]
    file: RelativePath
    special: dict[str, int]
    added: dict[str, int]
    bos_id: int | None
    stop_ids: tuple[int, ...]
    image_start: str = "<img>"
    image_context: str = "<IMG_CONTEXT>"
    image_end: str = "</img>"

    @property
    def image_context_id(self) -> int:
        return self.special[self.image_context]


class PromptContract(Record):
    """The template, the system message of this checkpoint (None: the template's own) and its tiling defaults."""

    template: TemplateName
    system: str | None = None
    max_tiles: int = 12
    thumbnail: bool = True


class Parity(Record):
    """How close one stage is to the float32 PyTorch reference: cosine similarity and largest absolute error."""

    stage: str
    cosine: float
    max_abs_error: float


class Shapes(Record):
    """One input's shapes in an engine's profile."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


class EngineProfile(Record):
    """Which shapes an engine takes: `tiles` (vision_encoder, projector), `decode` and `prefill` (decoder), `rows` (sampler)."""

    name: str
    inputs: dict[str, Shapes]


class EngineRecord(Record):
    """One TensorRT engine of a stage, with the inputs and outputs of that stage's ONNX graph under the same names; or the
    sampler, which draws tokens from a decoder's logits, and has no parity: its draws are compared one by one.

    `dtype`: of float inputs and outputs but logits, which are float32. `targets`: compute capabilities such as sm_86.
    `precision`: of activations; fp8, int8: of matrix products but those of modules `spared`. `artifact`: key in artifacts.
    `parity`: of its graph to that in float32, without a GPU: lowest cosine, largest error of all pictures. `judge` computed
    it: for bf16 PyTorch or an emulation. `float32_attention`: half precision did not hold this model's scores.
    """

    stage: EngineStage
    builder: EngineBuilder
    builder_version: str
    targets: tuple[str, ...]
    precision: EnginePrecision | Literal["fp32"]
    dtype: DType
    profiles: tuple[EngineProfile, ...]
    artifact: str
    build_s: float
    parity: Parity | None
    judge: Judge = "onnxruntime"
    spared: tuple[str, ...] = ()
    float32_attention: bool = False

    @property
    def max_tiles(self) -> int:
        """Of vision_encoder and projector."""
        (shapes,) = self.profiles[0].inputs.values()
        return shapes.max[0]

    @property
    def slots(self) -> int:
        """Of the decoder: rows of its KV cache that one step may cover; of the sampler: rows of logits."""
        name, rows = ("rows", "logits") if self.stage == "sampler" else ("decode", "past_lengths")
        return self.profile(name).inputs[rows].max[0]

    @property
    def capacity(self) -> int:
        """Of the decoder: tokens that a slot holds, exactly."""
        return self.profile("decode").inputs["past.0.key"].max[2]

    def profile(self, name: str) -> EngineProfile:
        return next(each for each in self.profiles if each.name == name)


class Manifest(Record):
    version: Literal[1] = 1
    name: str
    vitrail: str
    vision: VisionContract
    decoder: DecoderContract
    tokenizer: TokenizerContract
    prompt: PromptContract
    artifacts: dict[str, Artifact]
    parity: tuple[Parity, ...] = ()
    engines: tuple[EngineRecord, ...] = ()

    def engine(
        self,
        stage: EngineStage,
        builder: EngineBuilder,
        target: str,
        *,
        builder_version: str | None = None,
        directory: Path | str = "DIR",
    ) -> EngineRecord:
        """The engine of `stage` for `target`, such as sm_86, built by `builder`, and by that version if one is given.

        Raises ArtifactError naming what is there, what is needed and the command that builds it.
        """
        like, lacking = self.engines, unfit(self)
        command = engine_command(stage, builder, target, directory=directory, like=like, unfit=lacking)
        cure = f"build one with: {command}"
        of_stage = [each for each in self.engines if each.stage == stage]
        if not of_stage:
            raise ArtifactError(f"there is no engine of {stage} for {builder} on {target}; {cure}")
        fitting = [each for each in of_stage if each.builder == builder and target in each.targets]
        if not fitting:
            found = ", ".join(f"{each.builder} on {'/'.join(each.targets)}" for each in of_stage)
            raise ArtifactError(f"{stage} has engines for {found}; {builder} on {target} is needed; {cure}")
        engine = fitting[-1]
        if builder_version not in (None, engine.builder_version):
            raise ArtifactError(
                f"the engine of {stage} was built by {builder} {engine.builder_version}, "
                f"{builder_version} is installed; {cure}"
            )
        return engine

    def rebuild(self, engine: EngineRecord, directory: Path | str, **changed: int) -> str:
        """The command that builds `engine` again as it is, with the builder that is installed, but for what is `changed`."""
        return engine_command(
            engine.stage,
            engine.builder,
            ",".join(engine.targets),
            directory=directory,
            like=(*self.engines, engine),
            unfit=unfit(self),
            changed={f"--{name}": value for name, value in changed.items()},
        )

    @property
    def graphs(self) -> dict[str, Artifact]:
        """The artifacts that every provider needs: all but the engines."""
        engines = {each.artifact for each in self.engines}
        return {name: artifact for name, artifact in self.artifacts.items() if name not in engines}

    def write(self, directory: Path) -> None:
        """Write atomically: a directory without a manifest is a half-written export."""
        partial = directory / (FILENAME + ".partial")
        partial.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        partial.replace(directory / FILENAME)


def load_manifest(directory: Path, *, contents: bool = False) -> Manifest:
    """Read and validate. Raises ArtifactError for a missing, half-written or foreign directory, naming the cure.

    contents: also compare every artifact with its hash, about a second for each GB.
    """
    path = directory / FILENAME
    if not directory.is_dir():
        raise ArtifactError(
            f"no artifact directory at '{directory}'; make one with: vitrail export CHECKPOINT --out '{directory}'"
        )
    if not path.is_file() and (directory / "config.json").is_file():
        raise ArtifactError(
            f"'{directory}' is a checkpoint and no export of one; make it with: "
            f"vitrail export '{directory}' --out artifacts"
        )
    if not path.is_file():
        raise ArtifactError(
            f"'{directory}' has no {FILENAME}: it is no vitrail export, or one that was cut off; "
            f"export again with: vitrail export CHECKPOINT --out '{directory}'"
        )
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(f"'{path}' is not JSON ({error}); export again") from error
    if not isinstance(fields, dict) or fields.get("version") != VERSION:
        found = fields.get("version") if isinstance(fields, dict) else None
        raise ArtifactError(
            f"'{path}' has manifest version {found!r}, this vitrail reads {VERSION}; export again with this version"
        )
    try:
        manifest = Manifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(
            f"'{path}': field '{where}': {first['msg']}; export again with this version"
        ) from error
    check_files(manifest, directory)
    if contents:
        check_hashes(manifest, directory)
    return manifest
