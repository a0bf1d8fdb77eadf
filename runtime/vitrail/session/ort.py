"""Sessions on ONNX Runtime whose tensors lie in the host's memory; caches are bound in place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.core import Float, Int32, Uint8
from vitrail.errors import InvalidInput, ServerError
from vitrail.manifest import DecoderContract, Manifest
from vitrail.providers import Cpu, Cuda
from vitrail.session import Step
from vitrail.session.inference import check_input, first_line, open_session
from vitrail.session.table import open_table

DTYPES = {"float32": np.float32, "float16": np.float16, "int8": np.int8}
LENGTHS: dict[str, dict[str, list[int | None]]] = {
    "ort": {"last_positions": [None], "total_length": []},
    "standard": {"past_lengths": [None]},
}


class OrtVision:
    """VisionSession of the vision encoder and projector; `tiles_per_run` bounds the memory of one run."""

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        *,
        provider: Cpu | Cuda = Cpu(),  # noqa: B008 (frozen)
        tiles_per_run: int = 8,
        stages: Sequence[str] = ("vision_encoder", "projector"),
        optimize: bool = True,
    ) -> None:
        self.contract = manifest.vision
        # Activations are quantized over a whole run: alone, a tile does not depend on its neighbours.
        self.tiles_per_run = 1 if self.contract.precision == "int8" else tiles_per_run
        self.sessions = {
            stage: open_session(directory / manifest.artifacts[stage].path, provider, optimize=optimize)
            for stage in stages
        }
        self._check_graphs()

    def encode(self, tiles: Uint8) -> Float:
        size = self.contract.tile_size
        if tiles.dtype != np.uint8 or tiles.ndim != 4 or tiles.shape[1:] != (3, size, size):
            raise InvalidInput(
                f"tiles are {tiles.dtype} {list(tiles.shape)}; this model takes uint8 [n, 3, {size}, {size}]"
            )
        return self._run("vision_encoder", "tiles", tiles, width=self.contract.feature_size)

    def project(self, features: Float) -> Float:
        expected = (self.contract.tokens_per_tile, self.contract.feature_size)
        if features.ndim != 3 or features.shape[1:] != expected:
            raise InvalidInput(
                f"features are {list(features.shape)}; this model takes [n, {expected[0]}, {expected[1]}]"
            )
        typed = features.astype(DTYPES[self.contract.dtype], copy=False)
        return self._run("projector", "features", typed, width=0)

    def _check_graphs(self) -> None:
        contract = self.contract
        expected = {
            "vision_encoder": ("tiles", "uint8", [3, contract.tile_size, contract.tile_size]),
            "projector": ("features", contract.dtype, [contract.tokens_per_tile, contract.feature_size]),
        }
        for stage, session in self.sessions.items():
            name, dtype, shape = expected[stage]
            check_input(session, stage, name, dtype=dtype, shape=[None, *shape])

    def _run(self, stage: str, name: str, batch: Any, *, width: int) -> Float:
        session, count = self.sessions[stage], len(batch)
        if count == 0:
            width = width or session.get_outputs()[0].shape[2]
            return np.empty((0, self.contract.tokens_per_tile, width), DTYPES[self.contract.dtype])
        runs = range(0, count, self.tiles_per_run)
        return np.concatenate([session.run(None, {name: batch[i : i + self.tiles_per_run]})[0] for i in runs])


def lengths(step: Step, contract: DecoderContract) -> dict[str, Int32]:
    """The inputs that tell how much of the cache a step reads, in the graph's dialect."""
    new = step.inputs_embeds.shape[1]
    past = np.ascontiguousarray(step.past_lengths, np.int32)
    if contract.dialect == "standard":
        return {"past_lengths": past}
    last_positions: Int32 = past + np.int32(new - 1)
    return {"last_positions": last_positions, "total_length": np.array(past.max() + new, np.int32)}


class OrtDecoder:
    """DecoderSession: the language model and its KV cache, one buffer per layer, written in place by IOBinding.

    The cache is allocated without being touched: memory is used as tokens arrive, at most
    slots x capacity x manifest.decoder.kv_bytes_per_token.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        *,
        slots: int,
        capacity: int,
        provider: Cpu | Cuda = Cpu(),  # noqa: B008 (frozen)
        optimize: bool = True,
    ) -> None:
        contract = self.contract = manifest.decoder
        self.slots, self.capacity = slots, capacity
        self.dtype = DTYPES[contract.dtype]
        self.table = open_table(directory / manifest.artifacts["token_embeddings"].path, contract)
        self.session = open_session(
            directory / manifest.artifacts["decoder"].path, provider, optimize=optimize
        )
        for name, shape in LENGTHS[contract.dialect].items():
            check_input(self.session, "decoder", name, dtype="int32", shape=shape)
        check_input(
            self.session,
            "decoder",
            f"past.{contract.layers - 1}.value",
            dtype=contract.cache_dtype,
            shape=[None, contract.kv_heads, None, contract.head_dim],
        )
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
        batch, new, _ = step.inputs_embeds.shape
        if int(step.past_lengths.max()) + new > self.capacity:
            raise InvalidInput(
                f"{int(step.past_lengths.max())} cached and {new} new tokens exceed the slot's capacity of {self.capacity}"
            )
        feeds = {
            "inputs_embeds": np.ascontiguousarray(step.inputs_embeds, self.dtype),
            "logit_positions": np.ascontiguousarray(step.logit_positions, np.int64),
            **lengths(step, self.contract),
        }
        binding = self.session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        binding.bind_output("logits", "cpu")
        self._bind_caches(binding, step.first_slot, batch)
        try:
            self.session.run_with_iobinding(binding)
        except Exception as error:
            raise ServerError(f"the decoder failed: {first_line(error)}") from error
        logits: Float = binding.get_outputs()[0].numpy()
        return logits

    def _bind_caches(self, binding: Any, first: int, count: int) -> None:
        for name, cache in self.caches.items():
            rows = cache[first : first + count]
            place = ("cpu", 0, cache.dtype, rows.shape, rows.ctypes.data)
            binding.bind_input(f"past.{name}", *place)
            binding.bind_output(f"present.{name}", *place)
