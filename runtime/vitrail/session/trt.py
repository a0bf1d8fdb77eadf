"""Sessions on TensorRT and TensorRT for RTX engines, which `vitrail engine` builds.

Memory is allocated once, as a session opens; each session has its own stream, and one thread uses it at a time.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from vitrail.errors import ArtifactError, InvalidInput, OptionError
from vitrail.session import Step
from vitrail.session.cuda_driver import LibCuda, Rows
from vitrail.session.table import open_table
from vitrail.session.trt_engine import Choice, Machine, choose, fits
from vitrail.session.trt_library import TensorRtLibrary
from vitrail.session.trt_runner import Run
from vitrail.session.trt_steps import Block, chunks, covering, distinct_rows, widened
from vitrail.session.trt_workspace import Need, Port, Workspace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vitrail.core import Float, Int32, Int64, Uint8
    from vitrail.manifest import EngineRecord, Manifest
    from vitrail.providers import TensorRt
    from vitrail.session.cuda_driver import Array
    from vitrail.session.trt_engine import Shape

STAGES = ("vision_encoder", "projector")
ALIGNMENT = 256  # of every address that TensorRT is given
CACHE_DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp8": "float16", "int8": "float16"}


def open_machine(provider: TensorRt) -> Machine:
    """The GPU and the library that a provider names. Raises OptionError where there is none, or none that fits."""
    driver = LibCuda(provider.device_id)
    return Machine(driver, TensorRtLibrary("tensorrt-rtx" if provider.rtx else "tensorrt", driver.gpu))


class TrtVision:
    """VisionSession: the engines of vision encoder and projector, or of the `stages` named.

    One run takes as many tiles as the engine was built for. With graphs, a number of tiles that comes again is captured.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        *,
        provider: TensorRt,
        stages: Sequence[str] = STAGES,
        machine: Machine | None = None,
    ) -> None:
        machine = machine or open_machine(provider)
        self.contract = manifest.vision
        choices = {stage: choose(directory, manifest, stage, machine) for stage in stages}  # type: ignore[arg-type]
        self._ports = {stage: _vision_ports(manifest, choice.record) for stage, choice in choices.items()}
        self._workspace = Workspace(
            machine,
            {stage: Need(choice, self._ports[stage], {}) for stage, choice in choices.items()},
            resident_bytes={},
            graphs=provider.graphs,
            cure="free some of it, or build the engines again with a lower --max-tiles",
        )

    def encode(self, tiles: Uint8) -> Float:
        size = self.contract.tile_size
        if tiles.dtype != np.uint8 or tiles.ndim != 4 or tiles.shape[1:] != (3, size, size):
            raise InvalidInput(
                f"tiles are {tiles.dtype} {list(tiles.shape)}; this model takes uint8 [n, 3, {size}, {size}]"
            )
        return self._run("vision_encoder", tiles)

    def project(self, features: Float) -> Float:
        expected = (self.contract.tokens_per_tile, self.contract.feature_size)
        if features.ndim != 3 or features.shape[1:] != expected:
            raise InvalidInput(
                f"features are {list(features.shape)}; this model takes [n, {expected[0]}, {expected[1]}]"
            )
        return self._run("projector", features)

    def _run(self, stage: str, batch: Array) -> Float:
        source, target = self._ports[stage]
        encoded: Float = np.empty((len(batch), *target.most[1:]), target.dtype)
        for start in range(0, len(batch), source.most[0]):
            part = slice(start, start + source.most[0])
            encoded[part] = self._run_part(stage, batch[part])
        return encoded

    def _run_part(self, stage: str, batch: Array) -> Array:
        """At most as many tiles as one run takes; the result is a view that the next run changes."""
        source, target = self._ports[stage]
        work = self._workspace
        work.driver.activate()
        work.put(source.name, batch)
        addresses = tuple((port.name, work.address(port.name)) for port in (source, target))
        work.run(stage, Run(0, ((source.name, batch.shape),), addresses), repeats=True)
        return work.take(target.name, (len(batch), *target.most[1:]))


def _vision_ports(manifest: Manifest, record: EngineRecord) -> tuple[Port, Port]:
    vision, most = manifest.vision, record.max_tiles
    tiles = Port("tiles", "uint8", (most, 3, vision.tile_size, vision.tile_size))
    encoded = (most, vision.tokens_per_tile, vision.feature_size)
    if record.stage == "vision_encoder":
        return tiles, Port("features", record.dtype, encoded)
    embeds = (most, vision.tokens_per_tile, manifest.decoder.hidden_size)
    return Port("features", record.dtype, encoded), Port("embeds", record.dtype, embeds)


class TrtDecoder:
    """DecoderSession: the decoder's engine and its KV cache, one buffer per layer and kind, written in place.

    Every slot holds as many tokens as the engine was built for; `capacity` of them are used. The engine's profiles are
    `decode`, one new token of several rows, and `prefill`, several of one row; longer steps are split.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        *,
        provider: TensorRt,
        slots: int,
        capacity: int,
        machine: Machine | None = None,
    ) -> None:
        machine = machine or open_machine(provider)
        contract = self.contract = manifest.decoder
        choice = choose(directory, manifest, "decoder", machine)
        record = self._record = choice.record
        _check_request(choice, slots=slots, capacity=capacity)
        self.slots, self.capacity = slots, capacity
        self.table = open_table(directory / manifest.artifacts["token_embeddings"].path, contract)
        self._graphs = provider.graphs
        self._caches = [f"{i}.{kind}" for i in range(contract.layers) for kind in ("key", "value")]
        self._token_bytes = 2 * contract.head_dim
        self._slot_bytes = contract.kv_heads * record.capacity * self._token_bytes
        if self._slot_bytes % ALIGNMENT:
            raise OptionError(
                f"a slot of {record.capacity} tokens does not end at a multiple of {ALIGNMENT} bytes; "
                f"build the engine with a --context that is a multiple of 64"
            )
        cache = CACHE_DTYPES[record.precision]
        resident = {f"{past}.{name}": cache for name in self._caches for past in ("past", "present")}
        self._workspace = Workspace(
            machine,
            {"decoder": Need(choice, _decoder_ports(manifest, record), resident)},
            resident_bytes=dict.fromkeys(self._caches, slots * self._slot_bytes),
            graphs=provider.graphs,
            cure="free some of it, take fewer slots, or build the engine again with a smaller --context",
        )
        self._check_in_place(choice)
        self._held = np.zeros(slots, np.int64)

    def embed(self, token_ids: Int32) -> Float:
        rows: Float = self.table[token_ids].astype(self._record.dtype, copy=False)
        return rows

    def copy(self, source: int, target: int, tokens: int) -> None:
        work = self._workspace
        work.driver.activate()
        rows = Rows(
            self.contract.kv_heads, tokens * self._token_bytes, self._record.capacity * self._token_bytes
        )
        for name in self._caches:
            base = work.address(name)
            work.stream.copy_rows(base + target * self._slot_bytes, base + source * self._slot_bytes, rows)
        self._held[target] = tokens

    def forward(self, step: Step) -> Float:
        new = step.inputs_embeds.shape[1]
        if int(step.past_lengths.max()) + new > self.capacity:
            raise InvalidInput(
                f"{int(step.past_lengths.max())} cached and {new} new tokens exceed the slot's capacity of {self.capacity}"
            )
        self._workspace.driver.activate()
        longest = self._record.profile("prefill").inputs["inputs_embeds"].max[1]
        parts = [self._run(part) for part in chunks(step, new_tokens=longest)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _run(self, step: Step) -> Float:
        """One run of the engine; the logits that the step asks for."""
        decodes = step.inputs_embeds.shape[1] == 1
        wide = widened(step, self._block(step), idle_position=self._record.capacity - 1) if decodes else step
        rows, new, _ = wide.inputs_embeds.shape
        # Every row of a block has logits: which ones are asked for does not change the run.
        places = np.arange(rows) if decodes else distinct_rows(wide.logit_positions, new)
        inputs = {
            "inputs_embeds": wide.inputs_embeds,
            "past_lengths": wide.past_lengths,
            "logit_positions": places,
        }
        self._queue("decode" if decodes else "prefill", wide.first_slot, inputs)
        self._held[step.first_slot : step.first_slot + len(step.past_lengths)] = step.past_lengths + new
        return self._logits(wide.logit_positions if decodes else np.arange(len(wide.logit_positions)))

    def _logits(self, rows: Int64) -> Float:
        """These rows of the last run's logits, once it has ended."""
        first, end = (int(rows.min()), int(rows.max()) + 1) if len(rows) else (0, 0)
        found = self._workspace.take("logits", (end - first, self.contract.vocab_size), first_row=first)
        logits: Float = found[rows - first]
        return logits

    def _block(self, step: Step) -> Block:
        """The slots of a decode step's run: its own where it is no graph, or where the block has no idle place."""
        own = Block(step.first_slot, len(step.past_lengths))
        block = covering(*own, slots=self.slots)
        full = self._held[block.first : block.first + block.rows].max() >= self._record.capacity
        return own if full or not self._graphs else block

    def _queue(self, profile: str, first_slot: int, inputs: Mapping[str, Array]) -> None:
        work, rows = self._workspace, len(inputs["past_lengths"])
        cache = (rows, self.contract.kv_heads, self._record.capacity, self.contract.head_dim)
        shapes: dict[str, Shape] = {name: array.shape for name, array in inputs.items()}
        shapes |= {f"past.{name}": cache for name in self._caches}
        if not fits(self._record.profile(profile), shapes):
            asked = {name: list(array.shape) for name, array in inputs.items()}
            raise InvalidInput(f"profile '{profile}' of the decoder's engine does not take {asked}")
        for name, array in inputs.items():
            work.put(name, array)
        addresses = {name: work.address(name) for name in (*inputs, "logits")}
        for name in self._caches:
            place = work.address(name) + first_slot * self._slot_bytes
            addresses |= {f"past.{name}": place, f"present.{name}": place}
        index = work.engines["decoder"].profile(profile)
        work.run(
            "decoder",
            Run(index, tuple(shapes.items()), tuple(addresses.items())),
            repeats=profile == "decode",
        )

    def _check_in_place(self, choice: Choice) -> None:
        plan = self._workspace.engines["decoder"].loaded.plan
        for name in self._caches:
            found = plan.get_aliased_input_tensor(f"present.{name}")
            if found != f"past.{name}":
                raise ArtifactError(
                    f"the decoder's engine writes present.{name} elsewhere than in past.{name}; {choice.cure}"
                )


def _decoder_ports(manifest: Manifest, record: EngineRecord) -> tuple[Port, ...]:
    def most(name: str) -> Shape:
        """The largest of all profiles."""
        return max((each.inputs[name].max for each in record.profiles), key=prod)

    return (
        Port("inputs_embeds", record.dtype, most("inputs_embeds")),
        Port("past_lengths", "int32", most("past_lengths")),
        Port("logit_positions", "int64", most("logit_positions")),
        Port("logits", "float32", (*most("logit_positions"), manifest.decoder.vocab_size)),
    )


def _check_request(choice: Choice, *, slots: int, capacity: int) -> None:
    record = choice.record
    for name, asked, most, option in (
        ("slots", slots, record.slots, "--slots"),
        ("context_tokens", capacity, record.capacity, "--context"),
    ):
        if asked > most:
            raise OptionError(
                f"{name} is {asked}, the decoder's engine was built for {most}; lower it to that, or build one with: "
                f"{record.command(choice.directory)} {option} {asked}"
            )
