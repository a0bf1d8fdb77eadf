"""Sessions on ONNX Runtime's CUDA provider: every tensor lies on the device, in memory that is allocated once.

Decode steps are CUDA graphs: each covers an aligned block of 1, 2, 4, ... slots, so that shapes and addresses repeat, and
onnxruntime captures it the first time that it runs. Prefill runs without. One thread uses a session at a time, always the
same where there are graphs: onnxruntime keeps them by thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vitrail.dtypes import CACHE_ELEMENT_BYTES, port_dtype
from vitrail.plan.memory import graph_bytes
from vitrail.plan.model import Load, check_arithmetic
from vitrail.providers import Cuda
from vitrail.session.blocks import Block, Wanted, chunks, covering, distinct_rows, widened
from vitrail.session.contract import (
    LENGTHS,
    STAGES,
    check_capacity,
    check_decoder,
    check_features,
    check_tiles,
    check_vision,
    lengths,
)
from vitrail.session.cuda_buffers import Buffers, Device, require_buffers
from vitrail.session.cuda_driver import LibCuda, Rows
from vitrail.session.cuda_memory import Port
from vitrail.session.cuda_sampler import GREEDY, DeviceSampler
from vitrail.session.inference import check_cuda, check_cudnn, open_session, run_bound
from vitrail.session.kernels import check_decoder_kernels
from vitrail.session.table import open_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from vitrail.core import Float, Int32, Int64, Uint8
    from vitrail.manifest import DecoderContract, Manifest
    from vitrail.sample import Draw
    from vitrail.session import Step
    from vitrail.session.cuda_driver import Array

CHUNK_TOKENS = 2048


def open_device(provider: Cuda) -> Device:
    """Raises OptionError, with every cause, where CUDA cannot run here."""
    check_cuda(provider)
    return Device(provider, LibCuda(provider.device_id), graphs=provider.graphs)


class OrtCudaVision:
    """VisionSession of the vision encoder and projector, or of the `stages` named; a run takes tiles_per_run tiles."""

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        *,
        device: Device,
        tiles_per_run: int = 8,
        stages: Sequence[str] = STAGES,
        optimize: bool = True,
    ) -> None:
        self.contract = manifest.vision
        check_arithmetic(self.contract, gpu=device.driver.gpu.target)
        # Activations are quantized over a whole run: alone, a tile does not depend on its neighbours.
        most = self._most = 1 if self.contract.precision == "int8" else tiles_per_run
        tokens, size = self.contract.tokens_per_tile, self.contract.tile_size
        tiles = Port("tiles", "uint8", (most, 3, size, size))
        features = Port(
            "features", port_dtype(self.contract.dtype), (most, tokens, self.contract.feature_size)
        )
        embeds = Port("embeds", port_dtype(self.contract.dtype), (most, tokens, manifest.decoder.hidden_size))
        ports = [tiles, features, embeds]
        self._ways = {"vision_encoder": (tiles, features), "projector": (features, embeds)}
        load = Load(slots=1, context_tokens=1, tiles_per_run=most)
        require_buffers(device, ports, {}, beside=graph_bytes(manifest, stages, load))
        self.sessions = {
            stage: open_session(
                directory / manifest.artifacts[stage].path, device.provider, optimize=optimize
            )
            for stage in stages
        }
        check_vision(self.sessions, self.contract)
        if isinstance(device.provider, Cuda) and "vision_encoder" in stages:
            check_cudnn(device.provider)
        self._buffers = Buffers(device, ports, {})

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
        """From the input of the first stage to the output of the last."""
        source, target, work = self._ways[stages[0]][0], self._ways[stages[-1]][1], self._buffers
        work.device.driver.activate()
        found: Float = np.empty((len(batch), *target.most[1:]), target.dtype)
        for start in range(0, len(batch), self._most):
            part = batch[start : start + self._most]
            work.put(source.name, part)
            work.settle()
            for stage in stages:
                self._run(stage, len(part))
            found[start : start + self._most] = work.take(target.name, (len(part), *target.most[1:]))
        return found

    def _run(self, stage: str, tiles: int) -> None:
        """From where its input lies on the device to where its output does."""
        (source, target), work = self._ways[stage], self._buffers
        binding = self.sessions[stage].io_binding()
        binding.bind_input(source.name, *work.place(source.name, (tiles, *source.most[1:])))
        binding.bind_output(target.name, *work.place(target.name, (tiles, *target.most[1:])))
        run_bound(self.sessions[stage], binding, stage)


class OrtCudaDecoder:
    """DecoderSession: the language model, its KV cache on the device, one buffer per layer and kind, written in place.

    The embedding table stays in the host's memory: a step needs a row per token, which one upload brings, and the table
    would take 0.4 to 1.1 GB of the GPU's.
    """

    reads_as_written = True

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        *,
        device: Device,
        slots: int,
        capacity: int,
        optimize: bool = True,
    ) -> None:
        contract = self.contract = manifest.decoder
        check_arithmetic(contract, gpu=device.driver.gpu.target)
        check_decoder_kernels(contract, device.provider, gpu=device.driver.gpu.target)
        self.slots, self.capacity = slots, capacity
        self.table = open_table(directory / manifest.artifacts["token_embeddings"].path, contract)
        self.graphs = device.graphs
        self._caches = [f"{i}.{kind}" for i in range(contract.layers) for kind in ("key", "value")]
        self._token_bytes = contract.head_dim * CACHE_ELEMENT_BYTES[contract.cache_dtype]
        self._slot_bytes = contract.kv_heads * capacity * self._token_bytes
        self._chunk = min(capacity, CHUNK_TOKENS)
        ports = [*_decoder_ports(contract, slots=slots, chunk=self._chunk), *DeviceSampler.ports(slots)]
        caches = dict.fromkeys(self._caches, slots * self._slot_bytes)
        load = Load(slots=slots, context_tokens=capacity)
        require_buffers(device, ports, caches, beside=graph_bytes(manifest, ("decoder",), load))
        path = directory / manifest.artifacts["decoder"].path
        self.session = open_session(path, device.provider, optimize=optimize, graphs=self.graphs)
        check_decoder(self.session, contract)
        self._sampler = DeviceSampler(device, vocab=contract.vocab_size)
        self._buffers = Buffers(device, ports, caches)
        self._held = np.zeros(slots, np.int32)
        self._graphs: dict[Block, tuple[int, Any]] = {}

    def embed(self, token_ids: Int32) -> Float:
        rows: Float = self.table[token_ids].astype(port_dtype(self.contract.dtype), copy=False)
        return rows

    def copy(self, source: int, target: int, tokens: int) -> None:
        work = self._buffers
        work.device.driver.activate()
        rows = Rows(self.contract.kv_heads, tokens * self._token_bytes, self.capacity * self._token_bytes)
        for name in self._caches:
            base = work.address(name)
            work.stream.copy_rows(base + target * self._slot_bytes, base + source * self._slot_bytes, rows)
        work.settle()
        self._held[target] = tokens

    def forward(self, step: Step) -> Float:
        return np.concatenate([self._take(wanted.rows) for wanted in self._runs(step)])

    def sample(self, step: Step, draws: Sequence[Draw | None]) -> Sequence[int | Float]:
        found: list[int | Float] = []
        for wanted in self._runs(step):
            found += self._answers(wanted, draws[len(found) : len(found) + len(wanted.rows)])
        return found

    def _answers(self, wanted: Wanted, draws: Sequence[Draw | None]) -> Sequence[int | Float]:
        """A token for each row that is wanted, its logits where the device cannot draw it."""
        if not any(draw is not None for draw in draws):
            return list(self._take(wanted.rows))
        planned = [GREEDY] * wanted.computed
        for row, draw in zip(wanted.rows, draws, strict=True):
            planned[row] = draw or GREEDY
        ids, exact = self._sampler.draw(self._buffers, planned)
        return [
            int(ids[row]) if draw is not None and exact[row] else self._take(wanted.rows[i : i + 1])[0]
            for i, (row, draw) in enumerate(zip(wanted.rows, draws, strict=True))
        ]

    def _take(self, rows: Int64) -> Float:
        """These rows of the device's logits."""
        first, end = (int(rows.min()), int(rows.max()) + 1) if len(rows) else (0, 0)
        found = self._buffers.take("logits", (end - first, self.contract.vocab_size), first_row=first)
        logits: Float = found[rows - first]
        return logits

    def _runs(self, step: Step) -> Iterator[Wanted]:
        """Run a step, in parts where it is long; what each part leaves on the device."""
        check_capacity(step, self.capacity)
        self._buffers.device.driver.activate()
        narrow = len(step.logit_positions) <= self.slots
        for part in chunks(step, new_tokens=self._chunk if narrow else self.slots):
            new = part.inputs_embeds.shape[1]
            yield self._decode(part) if new == 1 else self._prefill(part)
            self._held[part.first_slot : part.first_slot + len(part.past_lengths)] = part.past_lengths + new

    def _decode(self, step: Step) -> Wanted:
        block = self._block(step)
        wide = widened(step, block, idle_position=self._held[block.first : block.first + block.rows])
        self._put(wide, np.arange(block.rows))
        if self.graphs:
            if block not in self._graphs:
                self._graphs[block] = len(self._graphs) + 1, self._bind(wide, block.rows, total=self.capacity)
            graph, binding = self._graphs[block]
            run_bound(self.session, binding, "the decoder", graph=graph)
        else:
            run_bound(self.session, self._bind(wide, block.rows), "the decoder")
        return Wanted(wide.logit_positions, block.rows)

    def _prefill(self, step: Step) -> Wanted:
        positions = distinct_rows(step.logit_positions, step.inputs_embeds.shape[1])
        self._put(step, positions)
        run_bound(self.session, self._bind(step, len(positions)), "the decoder")
        return Wanted(np.arange(len(step.logit_positions)), len(positions))

    def _block(self, step: Step) -> Block:
        """The slots that a decode step runs over: its own without graphs, or where a row beside it has no place left."""
        own = Block(step.first_slot, len(step.past_lengths))
        block = covering(*own, slots=self.slots)
        full = self._held[block.first : block.first + block.rows].max() >= self.capacity
        return own if full or not self.graphs else block

    def _put(self, step: Step, positions: Int64) -> None:
        work = self._buffers
        work.put("inputs_embeds", step.inputs_embeds.reshape(-1, self.contract.hidden_size))
        work.put("logit_positions", positions)
        for name, array in lengths(step, self.contract).items():
            if array.ndim:
                work.put(name, array)
        work.settle()

    def _bind(self, step: Step, wanted: int, *, total: int | None = None) -> Any:
        """A step's tensors where `_put` leaves them. total: what the graph takes for its longest row; it reads no more."""
        work, binding = self._buffers, self.session.io_binding()
        binding.bind_input("inputs_embeds", *work.place("inputs_embeds", step.inputs_embeds.shape))
        binding.bind_input("logit_positions", *work.place("logit_positions", (wanted,)))
        for name, array in lengths(step, self.contract).items():
            if array.ndim:
                binding.bind_input(name, *work.place(name, array.shape))
            else:
                binding.bind_cpu_input(name, array if total is None else np.array(total, np.int32))
        binding.bind_output("logits", *work.place("logits", (wanted, self.contract.vocab_size)))
        shape = (len(step.past_lengths), self.contract.kv_heads, self.capacity, self.contract.head_dim)
        for name in self._caches:
            address = work.address(name) + step.first_slot * self._slot_bytes
            binding.bind_input(f"past.{name}", *work.at(address, self.contract.cache_dtype, shape))
            binding.bind_output(f"present.{name}", *work.at(address, self.contract.cache_dtype, shape))
        return binding


def _decoder_ports(contract: DecoderContract, *, slots: int, chunk: int) -> list[Port]:
    width = max(slots, chunk)
    return [
        Port("inputs_embeds", port_dtype(contract.dtype), (width, contract.hidden_size)),
        Port("logit_positions", "int64", (width,)),
        *(Port(name, "int32", (slots,)) for name, shape in LENGTHS[contract.dialect].items() if shape),
        Port("logits", "float32", (slots, contract.vocab_size)),
    ]
