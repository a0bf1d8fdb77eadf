"""Sessions on ONNX Runtime whose tensors lie in the host's memory; caches are bound in place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.core import Float, Int32, Uint8
from vitrail.dtypes import port_dtype
from vitrail.manifest import Manifest
from vitrail.providers import Cpu, OpenVino
from vitrail.runs import cpu_tiles_per_run
from vitrail.session import InSteps, OnHost, Step
from vitrail.session.contract import (
    STAGES,
    check_capacity,
    check_decoder,
    check_features,
    check_tiles,
    check_vision,
    element_type,
    lengths,
)
from vitrail.session.inference import open_session, run_bound
from vitrail.session.table import open_table

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, "int8": np.int8}
"""numpy has no bfloat16: its bits."""
SPINNING_WIDTH = 512
"""Language models from this hidden size on wait awake between operators: asleep, threads are called back so slowly that a
step takes a seventh more. Those of small ones wait for longer than they compute, and would take the cores from vision."""


class OrtVision(InSteps):
    """VisionSession of the vision encoder and projector; `tiles_per_run` bounds the memory of one run."""

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        *,
        provider: Cpu = Cpu(),  # noqa: B008 (frozen)
        tiles_per_run: int = 8,
        stages: Sequence[str] = STAGES,
        optimize: bool = True,
    ) -> None:
        self.contract = manifest.vision
        self.tiles_per_run = cpu_tiles_per_run(
            self.contract, tiles_per_run, openvino=isinstance(provider, OpenVino)
        )
        self.sessions = {
            stage: open_session(directory / manifest.artifacts[stage].path, provider, optimize=optimize)
            for stage in stages
        }
        check_vision(self.sessions, self.contract)

    def encode(self, tiles: Uint8) -> Float:
        check_tiles(tiles, self.contract)
        return self._run("vision_encoder", "tiles", tiles)

    def project(self, features: Float) -> Float:
        check_features(features, self.contract)
        typed = features.astype(DTYPES[port_dtype(self.contract.dtype)], copy=False)
        return self._run("projector", "features", typed)

    def _run(self, stage: str, name: str, batch: Any) -> Float:
        """Results are written where they stay: in the arena they would keep a whole run's memory."""
        session = self.sessions[stage]
        (output,) = session.get_outputs()
        rows = np.empty((len(batch), *output.shape[1:]), DTYPES[port_dtype(self.contract.dtype)])
        for first in range(0, len(batch), self.tiles_per_run):
            part = slice(first, first + self.tiles_per_run)
            binding = session.io_binding()
            binding.bind_cpu_input(name, np.ascontiguousarray(batch[part]))
            bind_rows(binding, output.name, rows[part])
            run_bound(session, binding, stage, release=True)
        return rows


class OrtDecoder(OnHost):
    """DecoderSession: the language model and its KV cache, one buffer per layer, written in place by IOBinding.

    The cache is allocated without being touched: memory is used as tokens arrive, at most
    slots x capacity x manifest.decoder.kv_bytes_per_token. Prompts are read by a graph of their own where the export has one.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        *,
        slots: int,
        capacity: int,
        provider: Cpu = Cpu(),  # noqa: B008 (frozen)
        optimize: bool = True,
    ) -> None:
        contract = self.contract = manifest.decoder
        self.slots, self.capacity = slots, capacity
        self.dtype = DTYPES[port_dtype(contract.dtype)]
        self.table = open_table(directory / manifest.artifacts["token_embeddings"].path, contract)
        self.reads_as_written = contract.prefill == "same"
        graphs = {name: directory / manifest.artifacts[name].path for name in contract.graphs}
        spin = manifest.decoder.hidden_size >= SPINNING_WIDTH
        opened = {
            name: open_session(path, provider, optimize=optimize, spin=spin) for name, path in graphs.items()
        }
        for name, session in opened.items():
            check_decoder(session, contract, name)
        self.session = opened["decoder"]
        self.reader = opened.get("prefill", self.session)
        shape = (slots, contract.kv_heads, capacity, contract.head_dim)
        self.caches = {
            f"{layer}.{kind}": np.zeros(shape, DTYPES[contract.cache_dtype])
            for layer in range(contract.layers)
            for kind in ("key", "value")
        }

    def embed(self, token_ids: Int32) -> Float:
        rows: Float = self.table[token_ids].astype(self.dtype, copy=False)
        return rows

    def copy(self, source: int, target: int, tokens: int) -> None:
        for cache in self.caches.values():
            cache[target, :, :tokens] = cache[source, :, :tokens]

    def forward(self, step: Step) -> Float:
        batch = step.inputs_embeds.shape[0]
        check_capacity(step, self.capacity)
        feeds = {
            "inputs_embeds": np.ascontiguousarray(step.inputs_embeds, self.dtype),
            "logit_positions": np.ascontiguousarray(step.logit_positions, np.int64),
            **lengths(step, self.contract),
        }
        session = self.reader if step.is_prompt else self.session
        binding = session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        logits = np.empty((len(step.logit_positions), self.contract.vocab_size), np.float32)
        bind_rows(binding, "logits", logits)
        self._bind_caches(binding, step.first_slot, batch)
        run_bound(session, binding, "the decoder", release=step.is_prompt)
        return logits

    def _bind_caches(self, binding: Any, first: int, count: int) -> None:
        for name, cache in self.caches.items():
            rows = cache[first : first + count]
            place = "cpu", 0, element_type(self.contract.cache_dtype), rows.shape, rows.ctypes.data
            binding.bind_input(f"past.{name}", *place)
            binding.bind_output(f"present.{name}", *place)


def bind_rows(binding: Any, name: str, rows: Any) -> None:
    """Have an output written into this array, in C order, of its shape."""
    binding.bind_output(name, "cpu", 0, rows.dtype, rows.shape, rows.ctypes.data)
