"""An export gets its engines: lower each graph, try it beside float32, compile it, record it in the manifest."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeAlias

from vitrail.artifact_files import check_hashes, sha256
from vitrail.engine_files import engine_file
from vitrail.errors import ArtifactError, ExportError
from vitrail.manifest import (
    Artifact,
    DType,
    EnginePrecision,
    EngineProfile,
    EngineRecord,
    EngineStage,
    Judge,
    Manifest,
    Parity,
    Stage,
    load_manifest,
)
from vitrail_export.checkpoint import Checkpoint
from vitrail_export.engine.builders import Builder, open_builder
from vitrail_export.engine.cases import Case, picture_files, vision_cases
from vitrail_export.engine.compile import compile_graph
from vitrail_export.engine.gate import Gate
from vitrail_export.engine.graphs import Prepared, position_embedding
from vitrail_export.engine.options import QUANTIZED, EngineOptions
from vitrail_export.engine.sampler import write_sampler
from vitrail_export.engine.shapes import (
    decoder_profiles,
    projector_profile,
    sampler_profile,
    vision_profile,
)
from vitrail_export.engine.sources import Source, Sources, open_checkpoint
from vitrail_export.engine.timing import cache_path
from vitrail_export.engine.workspace import scratch_folder
from vitrail_export.exporter import check_disk

FOLDER = "engines"
KERNELS = ".kernels"
"""Ends the name of what a session keeps beside an engine's file, and, with more behind it, one that is half written."""
SCRATCH_FACTOR = 4
"""Room for a stage's float32 graph, its emulation, the lowered graph and the engine, in weights of the first."""

Report: TypeAlias = Callable[[EngineStage, str, float], None]
"""(stage, what happens to it, how much of that is done, 0 to 1)"""


def build_engines(
    directory: Path, options: EngineOptions, *, report: Report = lambda _stage, _what, _done: None
) -> tuple[EngineRecord, ...]:
    """Build the engines of the export in `directory`, one after the other; each is recorded when it is done.

    An engine that is there as the options want it is kept; fp8 and int8 are built anew, for other pictures.
    Raises OptionError, ArtifactError, CheckpointError, and ExportError where a graph fails its checks or a build fails.
    """
    builder = open_builder(options.builder)
    targets = builder.targets(options.targets)
    builder.check_precision(options.precision, targets)
    manifest = load_manifest(directory)
    capacity = options.capacity(manifest)
    picture_files(options.pictures)
    check_hashes(manifest, directory)
    checkpoint = open_checkpoint(options, manifest)
    with scratch_folder(directory / FOLDER) as scratch:
        gate = Gate(directory, manifest)
        build = Build(
            directory, manifest, options, builder, targets, capacity, checkpoint, scratch, gate, report
        )
        kept = {stage: build.held(stage) for stage in options.stages}
        sources = Sources(directory, manifest, options, scratch, checkpoint)
        found = {stage: sources.find(stage) for stage in options.stages if kept[stage] is None}
        built = [kept[stage] or build.stage(found[stage]) for stage in options.stages]
        return (*built, *([build.sampler()] if options.decoder else []))


@dataclass(frozen=True, slots=True)
class Tried:
    """A graph that may become an engine. spared: its blocks in half precision, where the others are in fp8 or int8."""

    graph: Path
    parity: Parity | None
    spared: tuple[str, ...] = ()
    wide_attention: bool = False


@dataclass(frozen=True, slots=True)
class Build:
    directory: Path
    manifest: Manifest
    options: EngineOptions
    builder: Builder
    targets: tuple[str, ...]
    capacity: int
    checkpoint: Checkpoint | None
    scratch: Path
    gate: Gate
    report: Report

    def held(self, stage: EngineStage) -> EngineRecord | None:
        """The engine that an earlier build made for the same builder, targets, precision and profiles, if it is whole
        and was judged as it would be now.
        """
        precision = self.precision(stage)
        wanted = (
            stage,
            self.builder.name,
            self.builder.version,
            self.targets,
            precision,
            self.profiles(stage),
        )
        for each in self.manifest.engines:
            found = (
                each.stage,
                each.builder,
                each.builder_version,
                each.targets,
                each.precision,
                each.profiles,
            )
            judged = self.judge(stage) in (each.judge, "emulation")
            if found == wanted and judged and precision not in QUANTIZED and self._whole(each):
                self.report(stage, "up to date", 1.0)
                return each
        return None

    def _whole(self, record: EngineRecord) -> bool:
        try:
            engine_file(self.manifest, record, self.directory)
        except ArtifactError:
            return False
        return True

    def stage(self, source: Source) -> EngineRecord:
        """Build and record one engine."""
        stage, precision = source.stage, self.options.precision_of(source.stage)
        check_disk(self.directory, SCRATCH_FACTOR * source.weight_bytes())
        self.report(stage, f"lowering to {precision}", 0.0)
        cases = self.cases(source)
        prepared = Prepared.of(source, self.scratch, precision, cases)
        tried = self.tried(stage, prepared, cases)
        if self.judge(stage) == "pytorch":
            tried = replace(tried, parity=self.in_pytorch(stage, cases))
        record = self.compile(stage, tried)
        self.report(stage, "done", 1.0)
        for used in self.scratch.glob(f"{stage}.*"):
            used.unlink()
        return record

    def tried(self, stage: Stage, prepared: Prepared, cases: list[Case]) -> Tried:
        """A vision encoder that fails with its attention in float16 is tried once more with that in float32.

        A decoder is not: every step would cast its whole KV cache.
        """
        try:
            return self.attempt(stage, prepared, cases)
        except ExportError:
            if stage != "vision_encoder" or self.precision(stage) == "bf16":
                raise
        return self.attempt(stage, prepared, cases, wide_attention=True)

    def attempt(
        self, stage: Stage, prepared: Prepared, cases: list[Case], *, wide_attention: bool = False
    ) -> Tried:
        precision, where = self.options.precision_of(stage), ", attention in float32" * wide_attention
        graphs = prepared.lower(stage, precision, capacity=self.capacity, wide_attention=wide_attention)
        self.report(stage, f"comparing with float32{where}", 0.0)
        parity = self.gate.check(
            stage,
            cases,
            exact=graphs.exact,
            lowered=graphs.tried,
            precision=precision,
            judge=self.judge(stage),
        )
        return Tried(graphs.engine, parity, prepared.spared, wide_attention)

    def sampler(self) -> EngineRecord:
        """The engine that draws tokens from the logits of the decoder's."""
        if held := self.held("sampler"):
            return held
        self.report("sampler", "comparing with the host's draws", 0.0)
        graph = write_sampler(self.scratch, vocab=self.manifest.decoder.vocab_size)
        record = self.compile("sampler", Tried(graph, None))
        self.report("sampler", "done", 1.0)
        return record

    def precision(self, stage: EngineStage) -> EnginePrecision | Literal["fp32"]:
        return "fp32" if stage == "sampler" else self.options.precision_of(stage)

    def judge(self, stage: EngineStage) -> Judge:
        """What computes the precision before it is built: bf16 PyTorch, where it and the checkpoint are there."""
        if self.precision(stage) != "bf16":
            return "onnxruntime"
        return "pytorch" if self.checkpoint and find_spec("torch") else "emulation"

    def in_pytorch(self, stage: Stage, cases: list[Case]) -> Parity:
        from vitrail_export.engine.pytorch import check_in_pytorch  # noqa: PLC0415  torch is needed here only

        assert self.checkpoint is not None
        self.report(stage, "comparing with float32 in PyTorch", 0.0)
        return check_in_pytorch(self.checkpoint, stage, cases)

    def cases(self, source: Source) -> list[Case]:
        if source.stage == "vision_encoder":
            return vision_cases(self.manifest, self.options.pictures, position_embedding(source).numpy())
        return self.gate.projector_cases() if source.stage == "projector" else self.gate.decoder_cases()

    def profiles(self, stage: EngineStage) -> tuple[EngineProfile, ...]:
        if stage == "sampler":
            return (sampler_profile(self.manifest, slots=self.options.slots),)
        if stage == "decoder":
            slots, chunk = self.options.slots, self.options.prefill_chunk
            return decoder_profiles(self.manifest, slots=slots, capacity=self.capacity, chunk=chunk)
        shape = vision_profile if stage == "vision_encoder" else projector_profile
        return (shape(self.manifest, max_tiles=self.options.max_tiles),)

    def compile(self, stage: EngineStage, tried: Tried) -> EngineRecord:
        precision, profiles = self.precision(stage), self.profiles(stage)
        name = f"{stage}.{self.builder.name}.{'-'.join(self.targets)}.{precision}"
        file = self.directory / FOLDER / f"{name}.engine"
        started = time.monotonic()
        compile_graph(
            self.builder,
            tried.graph,
            file,
            targets=self.targets,
            profiles=profiles,
            timing=cache_path(file.parent, version=self.builder.version, target=self.targets[0]),
            progress=lambda phase, done: self.report(stage, phase, done),
        )
        dtype: DType = "float32" if precision in ("bf16", "fp32") else "float16"
        record = EngineRecord(
            stage=stage,
            builder=self.builder.name,
            builder_version=self.builder.version,
            targets=self.targets,
            precision=precision,
            dtype=dtype,
            profiles=profiles,
            artifact=f"{FOLDER}/{name}",
            build_s=round(time.monotonic() - started, 1),
            parity=tried.parity,
            judge=self.judge(stage),
            spared=tried.spared,
            float32_attention=tried.wide_attention,
        )
        record_engine(self.directory, record, file)
        return record


def record_engine(directory: Path, record: EngineRecord, file: Path) -> None:
    """Add an engine to the manifest. Older ones of the same stage and builder, for no other targets, leave it.

    Engine files that the manifest does not name are removed: those, and what an earlier export left; and so are the
    kernels that TensorRT for RTX compiled for them.
    """
    manifest = load_manifest(directory)
    kept = [
        each
        for each in manifest.engines
        if (each.stage, each.builder) != (record.stage, record.builder)
        or not set(each.targets) <= set(record.targets)
    ]
    artifacts = {
        **manifest.graphs,
        **{each.artifact: manifest.artifacts[each.artifact] for each in kept},
        record.artifact: Artifact(
            path=file.relative_to(directory).as_posix(), sha256=sha256(file), size_bytes=file.stat().st_size
        ),
    }
    manifest.model_copy(update={"artifacts": artifacts, "engines": (*kept, record)}).write(directory)
    named = {artifact.path for artifact in artifacts.values()}
    for found in (*file.parent.glob("*.engine"), *file.parent.glob(f"*.engine{KERNELS}*")):
        engine = found.name.partition(KERNELS)[0]
        if (
            found.with_name(engine).relative_to(directory).as_posix() not in named
            or engine == file.name != found.name
        ):
            found.unlink()
