"""Sessions on TensorRT and TensorRT for RTX engines, which `vitrail engine` builds.

Memory is allocated once, as a session opens; each session has its own stream, and one thread at a time uses it.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from vitrail.dtypes import ENGINE_CACHE_BYTES
from vitrail.errors import ArtifactError, InvalidInput, OptionError
from vitrail.session.blocks import Block, Wanted, chunks, covering, distinct_rows, widened
from vitrail.session.contract import STAGES, check_capacity, check_features, check_tiles
from vitrail.session.cuda_driver import LibCuda, Rows
from vitrail.session.cuda_memory import ALIGNMENT
from vitrail.session.table import open_table
from vitrail.session.trt_engine import Choice, Machine, choose, fits
from vitrail.session.trt_library import TensorRtLibrary
from vitrail.session.trt_ports import OUTPUTS, cache_names, decoder_tensors, vision_ports
from vitrail.session.trt_runner import Run
from vitrail.session.trt_sampler import IDLE, STAGE, TrtSampler, sampler_ports
from vitrail.session.trt_workspace import Need, Workspace

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from vitrail.core import Float, Int32, Int64, Uint8
    from vitrail.manifest import Manifest
    from vitrail.providers import TensorRt
    from vitrail.sample import Draw
    from vitrail.session import Step
    from vitrail.session.cuda_driver import Array
    from vitrail.session.trt_engine import Shape


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
        _check_features(choices)
        self._ports = {stage: vision_ports(manifest, choice.record) for stage, choice in choices.items()}
        self._workspace = Workspace(
            machine,
            {stage: Need(choice, self._ports[stage], {}) for stage, choice in choices.items()},
            resident_bytes={},
            graphs=provider.graphs,
            cure="free some of it, or build the engines again with a lower --max-tiles",
        )
        self._runs: dict[tuple[str, int], Run] = {}

    def encode(self, tiles: Uint8) -> Float:
        check_tiles(tiles, self.contract)
        return self._through(("vision_encoder",), tiles)

    def project(self, features: Float) -> Float:
        check_features(features, self.contract)
        return self._through(("projector",), features)

    def see(self, tiles: Uint8) -> Float:
        check_tiles(tiles, self.contract)
        return self._through(STAGES, tiles)

    def _through(self, stages: Sequence[str], batch: Array) -> Float:
        """From the input of the first stage to the output of the last, in runs of as many tiles as all of them take."""
        source, target = self._ports[stages[0]][0], self._ports[stages[-1]][1]
        most = min(self._ports[stage][0].most[0] for stage in stages)
        regions = self._workspace.regions
        self._workspace.driver.activate()
        found: Float = np.empty((len(batch), *target.most[1:]), target.dtype)
        for start in range(0, len(batch), most):
            part = batch[start : start + most]
            regions.put(source.name, part)
            for stage in stages:
                self._workspace.run(stage, self._run(stage, len(part)), repeats=True)
            found[start : start + most] = regions.take(target.name, (len(part), *target.most[1:]))
        return found

    def _run(self, stage: str, tiles: int) -> Run:
        if (stage, tiles) not in self._runs:
            source, target = self._ports[stage]
            addresses = {port.name: self._workspace.regions.address(port.name) for port in (source, target)}
            self._runs[stage, tiles] = Run(0, {source.name: (tiles, *source.most[1:])}, addresses)
        return self._runs[stage, tiles]


def _check_features(choices: Mapping[str, Choice]) -> None:
    """Raise ArtifactError where features come out of one engine in another dtype than the next one takes."""
    dtypes = {stage: choice.record.dtype for stage, choice in choices.items()}
    if len(set(dtypes.values())) > 1:
        found = ", ".join(f"{stage} {dtype}" for stage, dtype in dtypes.items())
        raise ArtifactError(f"the engines' features differ in dtype ({found}); {choices[STAGES[0]].cure}")


class TrtDecoder:
    """DecoderSession: the decoder's engine and its KV cache, one buffer per layer and kind, written in place.

    Every slot holds as many tokens as the engine was built for; `capacity` of them are used. The engine's profiles are
    `decode`, one new token of several rows, and `prefill`, several of one row; longer steps are split.
    """

    reads_as_written = True

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
        choice = self._choice = choose(directory, manifest, "decoder", machine)
        record = self._record = choice.record
        sampler = choose(directory, manifest, STAGE, machine)
        _check_request(choice, slots=slots, capacity=capacity)
        _check_most(sampler, "slots", asked=record.slots, most=sampler.record.slots, option="slots")
        self.slots, self.capacity = slots, capacity
        self.table = open_table(directory / manifest.artifacts["token_embeddings"].path, contract)
        self._graphs = provider.graphs
        self._caches = cache_names(contract)
        self._slot_shape = (contract.kv_heads, record.capacity, contract.head_dim)
        self._token_bytes = ENGINE_CACHE_BYTES * contract.head_dim
        self._slot_bytes = ENGINE_CACHE_BYTES * prod(self._slot_shape)
        ports, resident = decoder_tensors(manifest, record)
        self._workspace = Workspace(
            machine,
            {
                "decoder": Need(choice, ports, resident),
                STAGE: Need(sampler, sampler_ports(record.slots, contract.vocab_size), {}),
            },
            resident_bytes=dict.fromkeys(self._caches, slots * self._slot_bytes),
            graphs=provider.graphs,
            cure="free some of it, take fewer slots, or build the engine again with a smaller --context",
        )
        self._check_in_place()
        self._sampler = TrtSampler(self._workspace, vocab=contract.vocab_size)
        self._runs: dict[Block, Run] = {}
        self._held = np.zeros(slots, np.int64)

    def embed(self, token_ids: Int32) -> Float:
        rows: Float = self.table[token_ids].astype(self._record.dtype, copy=False)
        return rows

    def copy(self, source: int, target: int, tokens: int) -> None:
        self._workspace.driver.activate()
        regions, capacity = self._workspace.regions, self._record.capacity
        rows = Rows(self.contract.kv_heads, tokens * self._token_bytes, capacity * self._token_bytes)
        for name in self._caches:
            base = regions.address(name)
            regions.stream.copy_rows(base + target * self._slot_bytes, base + source * self._slot_bytes, rows)
        self._held[target] = tokens

    def forward(self, step: Step) -> Float:
        return np.concatenate([self._logits(wanted.rows) for wanted in self._steps(step)])

    def sample(self, step: Step, draws: Sequence[Draw | None]) -> Sequence[int | Float]:
        """Tokens come from the device where it can draw them, logits for all others."""
        left, found = iter(draws), []
        for wanted in self._steps(step):
            found += self._drawn(wanted, [next(left) for _ in wanted.rows])
        return found

    def _steps(self, step: Step) -> Iterator[Wanted]:
        """Run a step, in parts where it is long; what each part leaves on the device."""
        check_capacity(step, self.capacity)
        self._workspace.driver.activate()
        takes = self._record.profile("prefill").inputs
        longest, most = takes["inputs_embeds"].max[1], takes["logit_positions"].max[0]
        for part in chunks(step, new_tokens=longest if len(step.logit_positions) <= most else most):
            new = part.inputs_embeds.shape[1]
            yield self._decode(part) if new == 1 else self._prefill(part)
            self._held[part.first_slot : part.first_slot + len(part.past_lengths)] = part.past_lengths + new

    def _drawn(self, wanted: Wanted, draws: Sequence[Draw | None]) -> list[int | Float]:
        """A token for each row whose largest logit is finite and whose draw the device is sure of, the logits of the others."""
        rows, planned = wanted.rows, [IDLE] * wanted.computed
        for row, draw in zip(rows, draws, strict=True):
            planned[row] = draw if draw is not None and draw.temperature else IDLE
        if sampled := any(draw is not IDLE for draw in planned):
            self._sampler.queue(planned)
        token_ids, tops = self._take("greedy", rows), self._take("greedy_logit", rows)
        known = np.isfinite(tops) & np.array([draw is not None for draw in draws], bool)
        if sampled:
            drawn, exact = (each[rows] for each in self._sampler.take(wanted.computed))
            greedy = np.array([draw is None or not draw.temperature for draw in draws])
            token_ids, known = np.where(greedy, token_ids, drawn), known & (greedy | exact)
        logits = iter(self._logits(rows[~known]))
        return [
            int(token) if on_device else next(logits)
            for token, on_device in zip(token_ids, known, strict=True)
        ]

    def _decode(self, step: Step) -> Wanted:
        """Queue it; every row of a block has logits, so that its runs are equal."""
        block = self._block(step)
        wide = widened(step, block, idle_position=self._record.capacity - 1)
        if block not in self._runs:
            self._runs[block] = self._run("decode", wide, wanted=block.rows)
        self._put(wide, np.arange(block.rows))
        self._workspace.run("decoder", self._runs[block], repeats=True)
        return Wanted(wide.logit_positions, block.rows)

    def _prefill(self, step: Step) -> Wanted:
        positions = distinct_rows(step.logit_positions, step.inputs_embeds.shape[1])
        run = self._run("prefill", step, wanted=len(positions))
        self._put(step, positions)
        self._workspace.run("decoder", run, repeats=False)
        return Wanted(np.arange(len(step.logit_positions)), len(positions))

    def _logits(self, rows: Int64) -> Float:
        logits: Float = self._take("logits", rows, self.contract.vocab_size)
        return logits

    def _take(self, name: str, rows: Int64, *width: int) -> Array:
        """These rows of an output of the last run, once it has ended."""
        first, end = (int(rows.min()), int(rows.max()) + 1) if len(rows) else (0, 0)
        found = self._workspace.regions.take(name, (end - first, *width), first_row=first)
        taken: Array = found[rows - first]
        return taken

    def _block(self, step: Step) -> Block:
        """The slots of a decode step's run: its own where it is no graph, or where the block has no idle place."""
        own = Block(step.first_slot, len(step.past_lengths))
        block = covering(*own, slots=self.slots)
        full = self._held[block.first : block.first + block.rows].max() >= self._record.capacity
        return own if full or not self._graphs else block

    def _put(self, step: Step, positions: Int64) -> None:
        regions = self._workspace.regions
        regions.put("inputs_embeds", step.inputs_embeds)
        regions.put("past_lengths", step.past_lengths)
        regions.put("logit_positions", positions)

    def _run(self, profile: str, step: Step, *, wanted: int) -> Run:
        """A step's shapes and addresses. Raises InvalidInput where the profile does not take them."""
        regions, rows = self._workspace.regions, len(step.past_lengths)
        shapes: dict[str, Shape] = {
            "inputs_embeds": step.inputs_embeds.shape,
            "past_lengths": (rows,),
            "logit_positions": (wanted,),
        }
        addresses = {name: regions.address(name) for name in (*shapes, *OUTPUTS)}
        for name in self._caches:
            place = regions.address(name) + step.first_slot * self._slot_bytes
            addresses |= {f"past.{name}": place, f"present.{name}": place}
            shapes[f"past.{name}"] = (rows, *self._slot_shape)
        takes = self._record.profile(profile)
        if not fits(takes, shapes):
            most = [list(takes.inputs[name].max) for name in ("inputs_embeds", "logit_positions")]
            raise InvalidInput(
                f"a step of {list(step.inputs_embeds.shape)} with {wanted} logits is outside profile '{profile}' of the "
                f"decoder's engine, which takes {most[0]} with {most[1][0]}; take less at once"
            )
        return Run(self._workspace.engines["decoder"].profile(profile), shapes, addresses)

    def _check_in_place(self) -> None:
        plan = self._workspace.engines["decoder"].loaded.plan
        for name in self._caches:
            found = plan.get_aliased_input_tensor(f"present.{name}")
            if found != f"past.{name}":
                raise ArtifactError(
                    f"the decoder's engine writes present.{name} elsewhere than in past.{name}; {self._choice.cure}"
                )


def _check_request(choice: Choice, *, slots: int, capacity: int) -> None:
    record = choice.record
    _check_most(choice, "slots", asked=slots, most=record.slots, option="slots")
    _check_most(choice, "context_tokens", asked=capacity, most=record.capacity, option="context")
    contract = choice.manifest.decoder
    if ENGINE_CACHE_BYTES * contract.kv_heads * contract.head_dim * record.capacity % ALIGNMENT:
        raise OptionError(
            f"the decoder's engine has slots of {record.capacity} tokens, which do not end at a multiple of "
            f"{ALIGNMENT} bytes; build it with a --context that is a multiple of 64"
        )


def _check_most(choice: Choice, name: str, *, asked: int, most: int, option: str) -> None:
    if asked > most:
        command = choice.manifest.rebuild(choice.record, choice.directory, **{option: asked})
        raise OptionError(
            f"{name} is {asked}, the {choice.record.stage}'s engine was built for {most}; lower it to that, or build one "
            f"with: {command}"
        )
