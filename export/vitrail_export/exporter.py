"""A checkpoint becomes an artifact directory: three graphs, the embedding table, the tokenizer and the manifest."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from onnxscript import GraphBuilder

from vitrail.artifact_files import sha256
from vitrail.core import Uint8
from vitrail.errors import ExportError, OptionError
from vitrail.manifest import (
    FILENAME,
    Artifact,
    DecoderContract,
    Manifest,
    TokenizerContract,
    VisionContract,
)
from vitrail.session.contract import STAGES
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
from vitrail_export.graph import Form, Progress, Weight, save_graph
from vitrail_export.options import ExportOptions
from vitrail_export.pictures import calibration_tiles
from vitrail_export.projector import build_projector
from vitrail_export.tokenizer import export_tokenizer
from vitrail_export.vision import build_vision_encoder

GRAPHS = ("vision_encoder", "projector", "decoder", "prefill")
WRITTEN = (
    *(f"{graph}.onnx{suffix}" for graph in GRAPHS for suffix in ("", ".data")),
    EMBEDDINGS,
    SCALES,
    "tokenizer.model",
    "tokenizer.json",
)
"""Every file that an export may consist of, beside its manifest."""
SCRATCH = ".vitrail-float"
"""The folder of graphs that others are made of; an export that was killed leaves it."""


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
    the largest single weight. Raises CheckpointError, OptionError, ExportError; what the options or the calibration's
    pictures have wrong, before anything in `out` is touched.
    """
    options = options or ExportOptions()
    checkpoint = Checkpoint.open(source)
    check_directory(out)
    config = checkpoint.config
    graphs = build_graphs(config, options)
    tiles = calibration_tiles(config, options.calibration) if options.fits_vision else None
    if options.calibrated:
        graphs |= build_decoders(config, *fitted_forms(checkpoint, options))
    prepare(out)
    # float16 holds every bfloat16 from 2^-17 on, and its like below to 2^-25.
    table_dtype: TableDType = np.dtype("f4" if options.precision == "float32" else "f2")
    expected = sum(map(weight_bytes, graphs.values()))
    expected += table_bytes(checkpoint, options.table_precision, table_dtype)
    check_disk(out, expected)
    tokenizer = export_tokenizer(checkpoint.path, out, template=config.template, eos_ids=config.eos_ids)
    meter = Meter(expected, progress)
    spared = () if tiles is None else save_static_vision(graphs, checkpoint, tiles, out, meter)
    for name, builder in graphs.items():
        save_graph(builder, checkpoint, out / f"{name}.onnx", meter.stage(name))
    report = meter.stage("token_embeddings")
    if options.table_precision == "float":
        save_embeddings(checkpoint, out / EMBEDDINGS, table_dtype, report)
    else:
        save_quantized_embeddings(checkpoint, out, options.table_precision, report)
    manifest = describe(config, options, tokenizer, out, name=checkpoint.name, spared=spared)
    if write_manifest:
        manifest.write(out)
    return manifest


def build_graphs(config: ModelConfig, options: ExportOptions) -> dict[str, GraphBuilder]:
    """By their names in GRAPHS, as nothing is calibrated."""
    return {
        "vision_encoder": build_vision_encoder(config, options.vision_form),
        "projector": build_projector(config, options.vision_form),
        **build_decoders(config, options.decoder_form, options.prefill_form),
    }


def build_decoders(config: ModelConfig, form: Form, prefill: Form | None) -> dict[str, GraphBuilder]:
    """The language model in its `form`, and the graph that reads prompts, where there is one."""
    graphs = {"decoder": build_decoder(config.text, form)}
    if prefill is not None:
        graphs["prefill"] = build_decoder(config.text, prefill)
    return graphs


def save_static_vision(
    graphs: dict[str, GraphBuilder], checkpoint: Checkpoint, tiles: Uint8, out: Path, meter: Meter
) -> tuple[str, ...]:
    """Take the vision models out of `graphs` and write them in static int8: the modules that stay in float."""
    from vitrail_export.static import write_static  # noqa: PLC0415  onnxruntime is needed here only

    scratch = out / SCRATCH
    scratch.mkdir()
    try:
        for name in STAGES:
            save_graph(graphs.pop(name), checkpoint, scratch / f"{name}.onnx", meter.stage(name))
        return write_static(scratch, tiles, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def fitted_forms(checkpoint: Checkpoint, options: ExportOptions) -> tuple[Form, Form | None]:
    """`options.decoder_form` and `options.prefill_form` fitted to the calibration pictures, with one cache."""
    assert options.calibration is not None
    config = checkpoint.config
    with tempfile.TemporaryDirectory() as scratch:
        files = Path(scratch)
        tokenizer = export_tokenizer(checkpoint.path, files, template=config.template, eos_ids=config.eos_ids)
        prompts = calibration_prompts(checkpoint, options.calibration, tokenizer, files)
    gptq, int8_cache = options.quantizer == "gptq", options.cache == "int8"
    form = fitted_form(checkpoint, options.decoder_form, prompts, gptq=gptq, int8_cache=int8_cache)
    prefill = options.prefill_form
    if prefill is not None and gptq:
        prefill = fitted_form(checkpoint, prefill, prompts, gptq=True, int8_cache=False)
    return form, prefill and replace(prefill, cache=form.cache)


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


def check_directory(out: Path) -> None:
    """Raise OptionError unless there is nothing, an empty directory or an earlier export."""
    if out.exists() and not out.is_dir():
        raise OptionError(f"'{out}' is a file; name a directory for the artifacts")
    if out.is_dir() and any(out.iterdir()) and not _is_export(out):
        raise OptionError(f"'{out}' holds files that are no vitrail export; name a new or empty directory")


def prepare(out: Path) -> None:
    """A directory without the files of an earlier export, of which the manifest goes first.

    A cut-off run so leaves no manifest, and a server that still maps the old files keeps them.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in (FILENAME, *WRITTEN):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / SCRATCH, ignore_errors=True)


def _is_export(out: Path) -> bool:
    left = (FILENAME, f"{GRAPHS[0]}.onnx.data", SCRATCH)
    return any((out / name).exists() for name in left)


def weight_bytes(builder: GraphBuilder) -> int:
    weights = [value for value in builder.graph.initializers.values() if isinstance(value, Weight)]
    return sum(int(weight.dtype.itemsize * np.prod(weight.shape.numpy())) for weight in weights)


def check_disk(out: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(out).free
    if free < needed_bytes:
        raise ExportError(
            f"the artifacts need {needed_bytes / 1e6:,.0f} MB, '{out}' has {free / 1e6:,.0f} MB free; "
            f"free some space or choose a smaller --precision"
        )


def describe(
    config: ModelConfig,
    options: ExportOptions,
    tokenizer: TokenizerContract,
    out: Path,
    *,
    name: str,
    spared: tuple[str, ...] = (),
) -> Manifest:
    return Manifest(
        name=name,
        vitrail=version("vitrail"),
        vision=vision_contract(config, options, spared),
        decoder=decoder_contract(config, options),
        tokenizer=tokenizer,
        prompt=prompt_contract(config),
        artifacts={_artifact_name(name): _artifact(out / name) for name in WRITTEN if (out / name).is_file()},
    )


def vision_contract(
    config: ModelConfig, options: ExportOptions, spared: tuple[str, ...] = ()
) -> VisionContract:
    return VisionContract(
        precision=options.vision_precision,
        spared=spared,
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
