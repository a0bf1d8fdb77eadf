"""The float32 graph that an engine is derived from: the export's own, or one made anew from its checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnxscript import GraphBuilder

from vitrail.errors import ArtifactError
from vitrail.manifest import Manifest, Stage
from vitrail.rebuild import unfit
from vitrail_export.checkpoint import Checkpoint
from vitrail_export.decoder import build_decoder
from vitrail_export.engine.lowering import widen
from vitrail_export.engine.options import EngineOptions
from vitrail_export.graph import save_graph
from vitrail_export.options import ExportOptions
from vitrail_export.projector import build_projector
from vitrail_export.verify import check_same_model
from vitrail_export.vision import build_vision_encoder


@dataclass(frozen=True, slots=True)
class Source:
    """A stage's graph on disk. `load` gives a fresh copy in float32 each time."""

    stage: Stage
    path: Path

    def load(self) -> ir.Model:
        model = ir.load(self.path)
        for value in model.graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _beside(self.path, value.const_value)
        widen(model)
        return model

    def weight_bytes(self) -> int:
        """Of all weights, those that are floats in float32."""
        held = (value.const_value for value in self.load().graph.initializers.values())
        return sum(int(tensor.nbytes) for tensor in held if tensor is not None)


@dataclass(frozen=True, slots=True)
class Sources:
    """Finds the graphs of an export, or writes them into `scratch`, which is on the same disk."""

    directory: Path
    manifest: Manifest
    options: EngineOptions
    scratch: Path
    checkpoint: Checkpoint | None

    def find(self, stage: Stage) -> Source:
        """Raises ArtifactError where the export has no graph for TensorRT and no checkpoint can give it."""
        unfit = self._unfit(stage)
        if unfit is None:
            return Source(stage, self.directory / self.manifest.artifacts[stage].path)
        if self.checkpoint is None:
            raise ArtifactError(
                f"{unfit}; name the checkpoint that it was exported from, and the graph is made anew: "
                f"vitrail engine {self.directory} --checkpoint CHECKPOINT ...; or export once more with: {self._export()}"
            )
        if stage == "decoder" and self.manifest.decoder.quantizer != "rtn":
            raise ArtifactError(
                f"{unfit}, and its weights were fitted to pictures, which is not repeated here; export once more with: "
                f"{self._export()} --quantizer {self.manifest.decoder.quantizer} --calibration PICTURES"
            )
        return Source(stage, self._derive(stage, self.checkpoint))

    def _derive(self, stage: Stage, checkpoint: Checkpoint) -> Path:
        path = self.scratch / f"{stage}.source.onnx"
        save_graph(self._builders()[stage](), checkpoint, path, lambda _name, _bytes: None)
        return path

    def _builders(self) -> dict[Stage, Callable[[], GraphBuilder]]:
        """Float graphs in float32: nothing is lost before it is lowered. The decoder keeps its weights' precision."""
        assert self.checkpoint is not None
        config = self.checkpoint.config
        held = self.manifest.decoder
        form = ExportOptions(
            precision="float32" if held.precision in ("float16", "bfloat16") else held.precision,
            activations="float32",
            dialect="standard",
            sensitive=held.sensitive,
        )
        return {
            "vision_encoder": lambda: build_vision_encoder(config, form.vision_form),
            "projector": lambda: build_projector(config, form.vision_form),
            "decoder": lambda: build_decoder(config.text, form.decoder_form),
        }

    def _unfit(self, stage: Stage) -> str | None:
        """What keeps an engine from being made of the export's own graph."""
        if stage not in unfit(self.manifest):
            return None
        name, vision, decoder = stage.replace("_", " "), self.manifest.vision, self.manifest.decoder
        if stage == "decoder":
            return (
                f"the decoder of '{self.directory}' is in dialect {decoder.dialect}, TensorRT needs standard"
            )
        return f"the {name} of '{self.directory}' is in {vision.precision}, TensorRT needs it in fp16 or fp32"

    def _export(self) -> str:
        held = self.manifest.decoder.precision
        precision = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "w8a8": "int8"}.get(held, held)
        return (
            f"vitrail export CHECKPOINT --out {self.directory}-standard --dialect standard "
            f"--vision-precision fp16 --precision {precision} --activations fp16"
        )


def _beside(graph: Path, held: ir.ExternalTensor) -> ir.ExternalTensor:
    """The same weights, from a file that may have several names.

    onnx_ir reads no file with a second hard link, which `vitrail repository --target cuda` gives the graphs' files. A
    file in another folder stays forbidden. Raises ArtifactError.
    """
    file = Path(held.location)
    if file.name != str(held.location):
        raise ArtifactError(
            f"graph '{graph}' has weights in '{file}', outside of its folder; export it again"
        )
    return ir.ExternalTensor(
        (graph.parent / file).resolve(),
        held.offset,
        held.length,
        held.dtype,
        shape=held.shape,
        name=held.name or "",
    )


def open_checkpoint(options: EngineOptions, manifest: Manifest) -> Checkpoint | None:
    """Raises CheckpointError, or ArtifactError where it is not what the export was made from."""
    if options.checkpoint is None:
        return None
    checkpoint = Checkpoint.open(options.checkpoint)
    check_same_model(manifest, checkpoint)
    return checkpoint
