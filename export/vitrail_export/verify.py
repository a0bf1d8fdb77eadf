"""Parity: every exported stage beside the float32 PyTorch reference of the same checkpoint, on the same inputs.

Each stage gets the reference's own inputs, so that an error is attributed to the stage that makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from vitrail.artifact_files import check_hashes
from vitrail.errors import ArtifactError, ExportError
from vitrail.manifest import (
    FILENAME,
    DecoderContract,
    Manifest,
    Parity,
    Stage,
    VisionContract,
    load_manifest,
)
from vitrail.providers import Cpu, Provider
from vitrail.session import DecoderSession, Step, VisionSession
from vitrail.session.open import open_decoder, open_vision
from vitrail_export.checkpoint import Checkpoint
from vitrail_export.emulation import emulated
from vitrail_export.options import DTYPES

Array: TypeAlias = npt.NDArray[Any]
Report: TypeAlias = Callable[[str], None]

VISUAL_TOKENS, TEXT_TOKENS = 16, 48
FLOORS = {"float32": 0.99999, "float16": 0.999, "bfloat16": 0.999}
VISION_FLOORS = {**FLOORS, "int8": 0.999, "int8-static": 0.999}
"""Lowest cosine of each precision. A decoder's integer weights have none: what they cost depends on the checkpoint."""
CACHE_FLOOR = 0.999
"""Of a language model over an int8 KV cache whose weights have a higher one."""
EMULATED_FLOOR = 0.99
"""Of a graph in bfloat16 on a CPU, where it is emulated and rounds more often: there PyTorch tells whether FLOORS are kept."""


def verify(
    artifacts: Path,
    source: str | Path,
    *,
    report: Report = lambda _stage: None,
    provider: Provider = Cpu(),  # noqa: B008 (frozen)
) -> tuple[Parity, ...]:
    """Run the artifacts beside the reference of checkpoint `source`; record and return each stage's parity.

    report(stage) is called as a stage begins. Raises ArtifactError for damaged or foreign artifacts, ExportError
    where a stage is not finite or falls under its precision's cosine. Needs torch.
    """
    manifest = load_manifest(artifacts)
    check_hashes(manifest, artifacts)
    stages = Stages(artifacts, manifest, provider)
    found = compare(stages, Checkpoint.open(source), report=report)
    manifest.model_copy(update={"parity": found}).write(artifacts)
    check_floors(stages, found)
    return found


def compare(stages: Stages, checkpoint: Checkpoint, *, report: Report) -> tuple[Parity, ...]:
    """Each stage beside the reference's. Raises ArtifactError where they were made from another model."""
    from vitrail_export.reference import Bfloat16, Reference  # noqa: PLC0415  torch is needed here only

    manifest = stages.manifest
    check_same_model(manifest, checkpoint)
    reference = Reference(checkpoint)
    report("vision_encoder")
    features = reference.features(sample_tiles(manifest))
    found = [parity("vision_encoder", stages.features(), features)]
    report("projector")
    embeds = reference.embeds(features)
    found.append(parity("projector", stages.embeds(features), embeds))
    report("decoder")
    prompt = np.concatenate([embeds[0, :VISUAL_TOKENS], reference.token_embeds(sample_ids(manifest))])
    expected = reference.logits(prompt[None], positions=range(VISUAL_TOKENS, len(prompt)))
    found += [parity(graph, stages.logits(prompt, graph), expected) for graph in manifest.decoder.graphs]
    rounded = Bfloat16(checkpoint)
    if stages.emulates(manifest.vision) and manifest.vision.dtype == "bfloat16":
        check_bfloat16("vision_encoder", rounded.features(sample_tiles(manifest)), features)
        check_bfloat16("projector", rounded.embeds(features), embeds)
    if stages.emulates(manifest.decoder) and manifest.decoder.dtype == "bfloat16":
        positions = range(VISUAL_TOKENS, len(prompt))
        check_bfloat16("decoder", rounded.logits(prompt[None], positions=positions), expected)
    return tuple(found)


def check_bfloat16(stage: str, got: Array, expected: Array) -> None:
    """Raise ExportError where the checkpoint, computed in bfloat16 by PyTorch, is not close to itself in float32."""
    cosine, floor = parity(f"{stage} in bf16", got, expected).cosine, FLOORS["bfloat16"]
    if cosine < floor:
        raise ExportError(
            f"{stage} in bf16, in PyTorch, has cosine {cosine:.6f} to float32, below {floor}; export this stage in fp16 or fp32"
        )


def check(
    artifacts: Path,
    source: str | Path,
    *,
    manifest: Manifest | None = None,
    report: Report = lambda _stage: None,
) -> tuple[Parity, ...]:
    """What every export must pass: `compare` where torch is installed, else that every stage's outputs are finite.

    manifest: of artifacts that have none yet. Until they have passed they have none, so that nothing serves them:
    not after an ExportError, which says which stage failed, nor after an interrupt.
    """
    manifest = load_manifest(artifacts) if manifest is None else manifest
    (artifacts / FILENAME).unlink(missing_ok=True)
    stages = Stages(artifacts, manifest)
    if find_spec("torch"):
        found = compare(stages, Checkpoint.open(source), report=report)
        check_floors(stages, found)
    else:
        check_finite(stages, report=report)
        found = ()
    manifest.model_copy(update={"parity": found}).write(artifacts)
    return found


def check_finite(stages: Stages, *, report: Report) -> None:
    """Run the stages one after the other; ExportError names the first that yields infinities or NaN."""
    report("vision_encoder")
    features = finite("vision_encoder", stages.features())
    report("projector")
    embeds = finite("projector", stages.embeds(features))
    report("decoder")
    for graph in stages.manifest.decoder.graphs:
        finite(graph, stages.logits(embeds[0, : VISUAL_TOKENS + TEXT_TOKENS], graph))


@dataclass(frozen=True, slots=True)
class Stages:
    """The artifacts on a provider, a session at a time, as they are served.

    But for weights of half precision on a CPU, which run unoptimized: optimizing would hold float32 copies of all of them.
    What a GPU computes in half precision is emulated there.
    """

    artifacts: Path
    manifest: Manifest
    provider: Provider = Cpu()  # noqa: RUF009 (frozen)

    def features(self) -> Array:
        optimize = self.optimize(self.manifest.vision.precision)
        with self._vision("vision_encoder", optimize=optimize) as session:
            return session.encode(sample_tiles(self.manifest))

    def embeds(self, features: Array) -> Array:
        with self._vision("projector", optimize=True) as session:
            return session.project(features)

    def optimize(self, precision: str) -> bool:
        return precision not in ("float16", "bfloat16") or not isinstance(self.provider, Cpu)

    def emulates(self, contract: VisionContract | DecoderContract) -> bool:
        return isinstance(self.provider, Cpu) and contract.dtype != "float32"

    @contextmanager
    def _vision(self, stage: Stage, *, optimize: bool) -> Iterator[VisionSession]:
        if not self.emulates(self.manifest.vision):
            yield open_vision(self.artifacts, self.manifest, self.provider, stages=[stage], optimize=optimize)
            return
        from vitrail.session.ort import OrtVision  # noqa: PLC0415  onnxruntime is needed here only

        dtype = DTYPES[self.manifest.vision.dtype]
        with emulated(self.artifacts, self.manifest, [stage], dtype=dtype) as manifest:
            yield OrtVision(self.artifacts, manifest, stages=[stage], optimize=False)

    @contextmanager
    def _decoder(self, capacity: int) -> Iterator[DecoderSession]:
        options: dict[str, Any] = {
            "slots": 1,
            "capacity": capacity,
            "optimize": self.optimize(self.manifest.decoder.precision),
        }
        if not self.emulates(self.manifest.decoder):
            yield open_decoder(self.artifacts, self.manifest, self.provider, **options)
            return
        from vitrail.session.ort import OrtDecoder  # noqa: PLC0415  as above

        dtype = DTYPES[self.manifest.decoder.dtype]
        with emulated(self.artifacts, self.manifest, ["decoder"], dtype=dtype) as manifest:
            yield OrtDecoder(self.artifacts, manifest, **options)

    def logits(self, prompt: Array, graph: str) -> Array:
        """Logits [P - VISUAL_TOKENS, vocab] of the last positions of a prompt [P, d], by the graph `decoder` or `prefill`."""
        step = Step(
            first_slot=0,
            inputs_embeds=prompt[None],
            past_lengths=np.zeros(1, np.int32),
            logit_positions=np.arange(VISUAL_TOKENS, len(prompt)),
            is_prompt=graph == "prefill",
        )
        with self._decoder(len(prompt)) as session:
            return session.forward(step)


def check_same_model(manifest: Manifest, checkpoint: Checkpoint) -> None:
    config, decoder = checkpoint.config, manifest.decoder
    exported = (decoder.layers, decoder.hidden_size, decoder.vocab_size, manifest.vision.feature_size)
    given = (config.text.layers, config.text.hidden_size, config.text.vocab_size, config.feature_size)
    if exported != given:
        raise ArtifactError(
            f"these artifacts were made from another model: (layers, hidden size, vocabulary, feature size) are {exported}, "
            f"the checkpoint's {given}; name the checkpoint that was exported ({manifest.name})"
        )


def sample_tiles(manifest: Manifest) -> npt.NDArray[np.uint8]:
    """One smooth picture with noise and hard edges, the same on every machine: uint8 [1, 3, S, S]."""
    size = manifest.vision.tile_size
    ramp = np.linspace(0, 1, size)
    channels = [
        np.add.outer(ramp, ramp) / 2,
        np.multiply.outer(ramp, 1 - ramp) * 4,
        np.sin(9 * np.add.outer(ramp, -ramp)) ** 2,
    ]
    picture = np.stack(channels) * 200 + np.random.default_rng(0).uniform(0, 55, (3, size, size))
    picture[:, size // 4 : size // 3, size // 5 :] = 0
    tiles: npt.NDArray[np.uint8] = picture.astype(np.uint8)[None]
    return tiles


def sample_ids(manifest: Manifest) -> list[int]:
    """TEXT_TOKENS ids spread over the vocabulary."""
    drawn = np.random.default_rng(1).integers(0, manifest.decoder.vocab_size, TEXT_TOKENS)
    return [int(each) for each in drawn]


def parity(stage: str, got: Array, expected: Array) -> Parity:
    """Cosine similarity and largest absolute error; ExportError where `got` is not finite."""
    a, b = (x.astype(np.float64).reshape(-1) for x in (finite(stage, got), expected))
    cosine = float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-300))
    return Parity(stage=stage, cosine=cosine, max_abs_error=float(np.abs(a - b).max()))


def finite(stage: str, got: Array) -> Array:
    bad = np.count_nonzero(~np.isfinite(got))
    if bad:
        raise ExportError(
            f"{stage}: {bad} of {got.size} outputs are not finite; export this stage in fp32, or in bf16 for a GPU"
        )
    return got


def _precision(manifest: Manifest, stage: str) -> str:
    if stage == "prefill":
        return manifest.decoder.prefill
    return manifest.decoder.precision if stage == "decoder" else manifest.vision.precision


def check_floors(stages: Stages, found: Sequence[Parity]) -> None:
    decoder = stages.manifest.decoder
    for each in found:
        precision, cure = _precision(stages.manifest, each.stage), "export this stage in a higher precision"
        decoding = each.stage in decoder.graphs
        floor = (FLOORS if decoding else VISION_FLOORS).get(precision, -1.0)
        if decoding and decoder.cache == "int8" and floor > CACHE_FLOOR:
            floor, cure = CACHE_FLOOR, "leave --kv-cache int8 out, or fit it to pictures that say more"
        if precision == "bfloat16" and isinstance(stages.provider, Cpu):
            floor = EMULATED_FLOOR
        if each.cosine < floor:
            raise ExportError(
                f"{each.stage} in {precision} has cosine {each.cosine:.6f} to the float32 reference, below {floor}; "
                f"{FILENAME} records it; {cure}"
            )
