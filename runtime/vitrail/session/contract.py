"""What every session asks of its graphs and of its callers, as `vitrail.manifest` describes the tensors. No onnxruntime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vitrail.dtypes import port_dtype
from vitrail.errors import ArtifactError, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vitrail.core import Float, Int32, Uint8
    from vitrail.manifest import DecoderContract, VisionContract
    from vitrail.session import Step

STAGES = ("vision_encoder", "projector")
TENSOR_TYPES = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "bfloat16": "tensor(bfloat16)",
    "int32": "tensor(int32)",
    "uint8": "tensor(uint8)",
    "int8": "tensor(int8)",
}
LENGTHS: dict[str, dict[str, list[int | None]]] = {
    "ort": {"last_positions": [None], "total_length": []},
    "standard": {"past_lengths": [None]},
}
"""Inputs that tell how much of the cache a step reads, by dialect; a scalar lies in host memory on any device."""


BFLOAT16 = 16
"""onnx.TensorProto's number."""


def element_type(dtype: str) -> Any:
    """A dtype by its name, as onnxruntime binds it: for bfloat16, which numpy has not, ONNX's number stands."""
    return BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype).type


def check_tiles(tiles: Uint8, contract: VisionContract) -> None:
    """Raise InvalidInput unless tiles are uint8 [n, 3, S, S]."""
    size = contract.tile_size
    if tiles.dtype != np.uint8 or tiles.ndim != 4 or tiles.shape[1:] != (3, size, size):
        raise InvalidInput(
            f"tiles are {tiles.dtype} {list(tiles.shape)}; this model takes uint8 [n, 3, {size}, {size}]"
        )


def check_features(features: Float, contract: VisionContract) -> None:
    """Raise InvalidInput unless features are [n, tokens_per_tile, feature_size]."""
    expected = (contract.tokens_per_tile, contract.feature_size)
    if features.ndim != 3 or features.shape[1:] != expected:
        raise InvalidInput(
            f"features are {list(features.shape)}; this model takes [n, {expected[0]}, {expected[1]}]"
        )


def check_vision(sessions: Mapping[str, Any], contract: VisionContract) -> None:
    """Raise ArtifactError where an ONNX Runtime session's graph is not the contract's."""
    expected = {
        "vision_encoder": ("tiles", "uint8", [3, contract.tile_size, contract.tile_size]),
        "projector": (
            "features",
            port_dtype(contract.dtype),
            [contract.tokens_per_tile, contract.feature_size],
        ),
    }
    for stage, session in sessions.items():
        name, dtype, shape = expected[stage]
        check_input(session, stage, name, dtype=dtype, shape=[None, *shape])


def check_decoder(session: Any, contract: DecoderContract, graph: str = "decoder") -> None:
    """Raise ArtifactError where an ONNX Runtime session's graph is not the contract's."""
    for name, shape in LENGTHS[contract.dialect].items():
        check_input(session, graph, name, dtype="int32", shape=shape)
    cache: list[int | None] = [None, contract.kv_heads, None, contract.head_dim]
    last = f"past.{contract.layers - 1}.value"
    check_input(session, graph, last, dtype=contract.cache_dtype, shape=cache)


def check_input(session: Any, stage: str, name: str, *, dtype: str, shape: Sequence[int | None]) -> None:
    """Raise ArtifactError unless the graph has this input as the manifest describes it; None is any size."""
    given = {each.name: each for each in session.get_inputs()}.get(name)
    wanted = TENSOR_TYPES[dtype]
    if given is None or given.type != wanted or not _fits(given.shape, shape):
        found = "no such input" if given is None else f"{given.type} {given.shape}"
        raise ArtifactError(
            f"the manifest does not describe {stage}.onnx: input '{name}' should be {wanted} {list(shape)}, "
            f"the graph has {found}; export again"
        )


def lengths(step: Step, contract: DecoderContract) -> dict[str, Int32]:
    """The inputs of LENGTHS for a step, in the graph's dialect."""
    new = step.inputs_embeds.shape[1]
    past = np.ascontiguousarray(step.past_lengths, np.int32)
    if contract.dialect == "standard":
        return {"past_lengths": past}
    last_positions: Int32 = past + np.int32(new - 1)
    return {"last_positions": last_positions, "total_length": np.array(past.max() + new, np.int32)}


def check_capacity(step: Step, capacity: int) -> None:
    """Raise InvalidInput where a row's new tokens do not fit its slot."""
    past, new = int(step.past_lengths.max()), step.inputs_embeds.shape[1]
    if past + new > capacity:
        raise InvalidInput(f"{past} cached and {new} new tokens exceed the slot's capacity of {capacity}")


def _fits(given: Sequence[int | str], wanted: Sequence[int | None]) -> bool:
    return len(given) == len(wanted) and all(
        size is None or size == found for found, size in zip(given, wanted, strict=True)
    )
