"""An export of random weights, written at the speed of the disk: what `synthesize` and `export` make, in one pass."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from bench.gpu.models import Subject
from bench.gpu.weights import RandomWeights, write_graph

from vitrail.manifest import Artifact, Manifest, TokenizerContract
from vitrail_export.decoder import build_decoder
from vitrail_export.embeddings import EMBEDDINGS, save_embeddings, save_quantized_embeddings
from vitrail_export.exporter import describe, weight_bytes
from vitrail_export.projector import build_projector
from vitrail_export.synthetic_tokenizer import write_tokenizer
from vitrail_export.tokenizer import export_tokenizer
from vitrail_export.vision import build_vision_encoder

NOT_HASHED = "0" * 64


def write_artifacts(subject: Subject, out: Path, *, seed: int = 0) -> Manifest:
    """The artifact directory `out` of a subject, and its manifest. Nothing is hashed: that alone would take 10 s.

    Memory: for each core, one weight and its blocks.
    """
    config, options = subject.config, subject.options
    out.mkdir(parents=True)
    source, threads = RandomWeights(config, seed=seed), os.cpu_count() or 1
    graphs = {
        "vision_encoder": build_vision_encoder(config, options.vision_form),
        "projector": build_projector(config, options.vision_form),
        "decoder": build_decoder(config.text, options.decoder_form),
    }
    _check_room(out, sum(map(weight_bytes, graphs.values())))
    tokenizer = _tokenizer(subject, out)
    manifest = describe(config, options, tokenizer, out, name=subject.title)
    for name, graph in graphs.items():
        write_graph(graph, source, out / f"{name}.onnx", threads=threads)
    if options.table_precision == "float":
        save_embeddings(source, out / EMBEDDINGS, np.dtype("f2"), lambda *_: None)
    else:
        save_quantized_embeddings(source, out, options.table_precision, lambda *_: None)
    files = [file for file in out.iterdir() if file.suffix in (".onnx", ".data", ".npy")]
    artifacts = {file.name.removesuffix(".onnx").removesuffix(".npy"): _artifact(file) for file in files}
    manifest = manifest.model_copy(update={"artifacts": {**manifest.artifacts, **artifacts}})
    manifest.write(out)
    return manifest


def _tokenizer(subject: Subject, out: Path) -> TokenizerContract:
    published = subject.published
    checkpoint = out / "checkpoint"
    checkpoint.mkdir()
    write_tokenizer(published.vocabulary, checkpoint)
    contract = export_tokenizer(
        checkpoint, out, template=published.config.template, eos_ids=published.config.eos_ids
    )
    shutil.rmtree(checkpoint)
    return contract


def _artifact(file: Path) -> Artifact:
    return Artifact(path=file.name, sha256=NOT_HASHED, size_bytes=file.stat().st_size)


def _check_room(out: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(out).free
    if free < needed_bytes:
        raise OSError(f"'{out}' has {free / 1e9:.1f} GB free, the artifacts need {needed_bytes / 1e9:.1f} GB")
