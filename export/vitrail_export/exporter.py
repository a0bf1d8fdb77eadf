"""A checkpoint becomes an artifact directory: three graphs, the embedding table, the tokenizer and the manifest."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import numpy as np
import onnx_ir as ir
from onnxscript import GraphBuilder

from vitrail.errors import ExportError, OptionError
from vitrail.manifest import (
    FILENAME,
    Artifact,
    CachePrecision,
    DecoderContract,
    Dialect,
    DType,
    Manifest,
    Precision,
    Prefill,
    Quantizer,
    Sensitive,
    TablePrecision,
    TokenizerContract,
    VisionContract,
    VisionPrecision,
    sha256,
)
from vitrail.session.table import SCALES
from vitrail_export.checkpoint import Checkpoint
from vitrail_export.config import ModelConfig
from vitrail_export.decoder import build_decoder
from vitrail_export.embeddings import (
    EMBEDDINGS,
    TableDType,
    save_embeddings,
    save_quantized_embeddings,
    table_bytes,
)
from vitrail_export.fit import calibration_prompts, fitted_form, prompt_contract
from vitrail_export.graph import Bits, Form, Progress, Weight, save_graph
from vitrail_export.projector import build_projector
from vitrail_export.tokenizer import export_tokenizer
from vitrail_export.vision import build_vision_encoder

PRECISIONS: dict[str, Precision] = {
    "fp32": "float32",
    "fp16": "float16",
    "int8": "int8",
    "w8a8": "w8a8",
    "int4": "int4",
}
GRAPHS = ("vision_encoder", "projector", "decoder", "prefill")
WRITTEN = (
    *(f"{graph}.onnx{suffix}" for graph in GRAPHS for suffix in ("", ".data")),
    EMBEDDINGS,
    SCALES,
    "tokenizer.model",
    "tokenizer.json",
)
"""Every file that an export may consist of, beside its manifest."""
DTYPES: dict[DType, ir.DataType] = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What to make of a checkpoint.

    precision of the language model; int8 and int4 are weight-only, with activations in `activations`; w8a8 multiplies in int8.
    vision_precision: int8 for the encoder's matrix products, activations quantized as they come. dialect: `ort` for ONNX Runtime, `standard` for TensorRT.
    quantizer: rtn rounds, gptq follows `calibration`, a directory of pictures. sensitive: what int4 and w8a8 keep weight-only in int8.
    prefill: w8a8 adds a graph that reads prompts. cache: of keys and values, int8 by `calibration` too. embeddings: of the table; None is int8 beside integer weights.
    Raises OptionError for what does not go together.
    """

    precision: Precision = "int4"
    prefill: Prefill = "same"
    vision_precision: VisionPrecision = "float32"
    activations: DType = "float32"
    dialect: Dialect = "ort"
    quantizer: Quantizer = "rtn"
    calibration: Path | None = None
    sensitive: tuple[Sensitive, ...] = ("lm_head",)
    cache: CachePrecision = "float"
    embeddings: TablePrecision | None = None

    def __post_init__(self) -> None:
        if self.quantizer == "gptq" and not self.bits:
            raise OptionError(
                f"quantizer gptq is for int8, w8a8 and int4, not {self.precision}; leave it out"
            )
        if "w8a8" in (self.precision, self.prefill) and (self.dialect, self.decoder_dtype) != (
            "ort",
            "float32",
        ):
            raise OptionError(
                f"w8a8 is for CPUs: in dialect ort with activations in float32, not {self.dialect} with "
                f"{self.decoder_dtype}; choose another precision"
            )
        if self.cache == "int8" and self.dialect == "standard":
            raise OptionError("an int8 KV cache is for dialect ort; leave it out for dialect standard")
        if self.calibrated and self.calibration is None:
            what = "quantizer gptq" if self.quantizer == "gptq" else "an int8 KV cache"
            raise OptionError(f"{what} is fitted to pictures; name a directory of them with --calibration")

    @property
    def calibrated(self) -> bool:
        return self.quantizer == "gptq" or self.cache == "int8"

    @property
    def bits(self) -> Bits | None:
        return {"w8a8": 8, "int8": 8, "int4": 4}.get(self.precision)  # type: ignore[return-value]

    @property
    def spared(self) -> tuple[Sensitive, ...]:
        return self.sensitive if self.precision in ("int4", "w8a8") else ()

    @property
    def table_precision(self) -> TablePrecision:
        return self.embeddings or ("int8" if self.bits else "float")

    @property
    def decoder_dtype(self) -> DType:
        return self.precision if self.precision in ("float32", "float16") else self.activations

    @property
    def vision_dtype(self) -> DType:
        return "float16" if self.vision_precision == "float16" else "float32"

    @property
    def vision_form(self) -> Form:
        """int8 multiplies in int8 on ONNX Runtime; TensorRT chooses its own precisions from float weights."""
        if self.vision_precision == "int8" and self.dialect == "standard":
            raise OptionError(
                "vision precision int8 is for dialect ort; export dialect standard with fp16 or fp32"
            )
        dtype = DTYPES[self.vision_dtype]
        return (
            Form(self.dialect, dtype, bits=8, int8="tensor")
            if self.vision_precision == "int8"
            else Form(self.dialect, dtype)
        )

    @property
    def decoder_form(self) -> Form:
        """As its weights are rounded; nothing is calibrated."""
        return Form(
            self.dialect,
            DTYPES[self.decoder_dtype],
            bits=self.bits,
            sensitive=frozenset(self.spared),
            int8="row" if self.precision == "w8a8" else None,
        )

    @property
    def prefill_form(self) -> Form | None:
        """The form of a graph that reads prompts, where they have one of their own."""
        if self.prefill == "same" or self.precision == "w8a8":
            return None
        return replace(self, precision="w8a8").decoder_form


def read_precision(value: str) -> Precision:
    """fp32, fp16, int8, int4 or their long names; OptionError otherwise."""
    found = PRECISIONS.get(value, value)
    if found not in PRECISIONS.values():
        raise OptionError(f"precision '{value}' is unknown; choose {', '.join(PRECISIONS)}")
    return found  # type: ignore[return-value]


def read_sensitive(value: str) -> tuple[Sensitive, ...]:
    """Names by commas, or `none`; OptionError for others."""
    names = [name.strip() for name in value.split(",") if name.strip() not in ("", "none")]
    unknown = [name for name in names if name not in get_args(Sensitive)]
    if unknown:
        raise OptionError(
            f"sensitive part '{unknown[0]}' is unknown; choose {', '.join(get_args(Sensitive))}"
        )
    return tuple(names)  # type: ignore[arg-type]


def export_checkpoint(
    source: str | Path,
    out: Path,
    *,
    options: ExportOptions | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    write_manifest: bool = True,
) -> Manifest:
    """Write the artifacts of `source` (a directory or a hub id) to `out` and return their manifest.

    write_manifest False leaves that to `verify.check`, so that artifacts are whole only once they have passed it.
    progress(stage, bytes written so far, bytes expected in total) is called after every weight. Memory stays near
    the largest single weight. Raises CheckpointError, OptionError, ExportError.
    """
    options = options or ExportOptions()
    checkpoint = Checkpoint.open(source)
    prepare(out)
    config = checkpoint.config
    graphs = build_graphs(config, options)
    table_dtype: TableDType = np.dtype("f4" if options.precision == "float32" else "f2")
    expected = sum(map(weight_bytes, graphs.values()))
    expected += table_bytes(checkpoint, options.table_precision, table_dtype)
    check_disk(out, expected)
    tokenizer = export_tokenizer(checkpoint.path, out, template=config.template, eos_ids=config.eos_ids)
    if options.calibrated:
        fitted = fitted_decoder_form(checkpoint, options, tokenizer, out)
        graphs |= build_decoders(config, options, fitted)
    meter = Meter(expected, progress)
    for name, builder in graphs.items():
        save_graph(builder, checkpoint, out / f"{name}.onnx", meter.stage(name))
    report = meter.stage("token_embeddings")
    if options.table_precision == "float":
        save_embeddings(checkpoint, out / EMBEDDINGS, table_dtype, report)
    else:
        save_quantized_embeddings(checkpoint, out, options.table_precision, report)
    manifest = describe(config, options, tokenizer, out, name=checkpoint.name)
    if write_manifest:
        manifest.write(out)
    return manifest


def build_graphs(config: ModelConfig, options: ExportOptions) -> dict[str, GraphBuilder]:
    """By their names in GRAPHS, as nothing is calibrated."""
    return {
        "vision_encoder": build_vision_encoder(config, options.vision_form),
        "projector": build_projector(config, options.vision_form),
        **build_decoders(config, options, options.decoder_form),
    }


def build_decoders(config: ModelConfig, options: ExportOptions, form: Form) -> dict[str, GraphBuilder]:
    """The language model in its `form`, and the graph that reads prompts into the same cache, where there is one."""
    graphs = {"decoder": build_decoder(config.text, form)}
    if options.prefill_form is not None:
        graphs["prefill"] = build_decoder(config.text, replace(options.prefill_form, cache=form.cache))
    return graphs


def fitted_decoder_form(
    checkpoint: Checkpoint, options: ExportOptions, tokenizer: TokenizerContract, out: Path
) -> Form:
    """`options.decoder_form` fitted to the calibration pictures; the tokenizer's files are in `out`."""
    prompts = calibration_prompts(checkpoint, options.calibration or out, tokenizer, out)
    gptq, int8_cache = options.quantizer == "gptq", options.cache == "int8"
    return fitted_form(checkpoint, options.decoder_form, prompts, gptq=gptq, int8_cache=int8_cache)


class Meter:
    """Adds up the bytes of all stages for one progress display."""

    def __init__(self, total: int, report: Callable[[str, int, int], None] | None) -> None:
        self.total, self.done, self.report = total, 0, report

    def stage(self, stage: str) -> Progress:
        def advance(_weight: str, size: int) -> None:
            self.done += size
            if self.report:
                self.report(stage, self.done, self.total)

        return advance


def prepare(out: Path) -> None:
    """An empty directory, or an earlier export, whose files are removed, the manifest first.

    A cut-off run so leaves no manifest, and a server that still maps the old files keeps them.
    """
    if out.exists() and not out.is_dir():
        raise OptionError(f"'{out}' is a file; name a directory for the artifacts")
    if out.is_dir() and any(out.iterdir()) and not _is_export(out):
        raise OptionError(f"'{out}' holds files that are no vitrail export; name a new or empty directory")
    out.mkdir(parents=True, exist_ok=True)
    for name in (FILENAME, *WRITTEN):
        (out / name).unlink(missing_ok=True)


def _is_export(out: Path) -> bool:
    return (out / FILENAME).is_file() or (out / f"{GRAPHS[0]}.onnx.data").is_file()


def weight_bytes(builder: GraphBuilder) -> int:
    weights = [value for value in builder.graph.initializers.values() if isinstance(value, Weight)]
    return sum(int(weight.dtype.itemsize * np.prod(weight.shape.numpy())) for weight in weights)


def check_disk(out: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(out).free
    if free < needed_bytes:
        raise ExportError(
            f"the artifacts need {needed_bytes / 1e9:.1f} GB, '{out}' has {free / 1e9:.1f} GB free; "
            f"free some space or choose a smaller --precision"
        )


def describe(
    config: ModelConfig, options: ExportOptions, tokenizer: TokenizerContract, out: Path, *, name: str
) -> Manifest:
    return Manifest(
        name=name,
        vitrail=version("vitrail"),
        vision=vision_contract(config, options),
        decoder=decoder_contract(config, options),
        tokenizer=tokenizer,
        prompt=prompt_contract(config),
        artifacts={_artifact_name(name): _artifact(out / name) for name in WRITTEN if (out / name).is_file()},
    )


def vision_contract(config: ModelConfig, options: ExportOptions) -> VisionContract:
    return VisionContract(
        precision=options.vision_precision,
        dtype=options.vision_dtype,
        dialect=options.dialect,
        tile_size=config.tile_size,
        tokens_per_tile=config.tokens_per_tile,
        feature_size=config.feature_size,
    )


def decoder_contract(config: ModelConfig, options: ExportOptions) -> DecoderContract:
    text = config.text
    return DecoderContract(
        precision=options.precision,
        prefill="same" if options.prefill_form is None else "w8a8",
        dtype=options.decoder_dtype,
        cache=options.cache,
        embeddings=options.table_precision,
        quantizer=options.quantizer,
        sensitive=options.spared,
        dialect=options.dialect,
        chunked_batch=options.dialect == "standard",
        layers=text.layers,
        kv_heads=text.kv_heads,
        head_dim=text.head_dim,
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        context_tokens=text.context_tokens,
    )


def _artifact_name(file: str) -> str:
    return file.removesuffix(".onnx").removesuffix(".npy")


def _artifact(file: Path) -> Artifact:
    return Artifact(path=file.name, sha256=sha256(file), size_bytes=file.stat().st_size)
