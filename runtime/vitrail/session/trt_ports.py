"""The tensors of an engine as its record describes them: those that pass through the host, those that stay on the device."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from vitrail.session.cuda_memory import Port

if TYPE_CHECKING:
    from vitrail.manifest import DecoderContract, EngineRecord, Manifest
    from vitrail.session.trt_engine import Shape

OUTPUTS = ("logits", "greedy", "greedy_logit")
CACHE_DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp8": "float16", "int8": "float16"}


def vision_ports(manifest: Manifest, record: EngineRecord) -> tuple[Port, Port]:
    vision, most = manifest.vision, record.max_tiles
    tiles = Port("tiles", "uint8", (most, 3, vision.tile_size, vision.tile_size))
    encoded = (most, vision.tokens_per_tile, vision.feature_size)
    if record.stage == "vision_encoder":
        return tiles, Port("features", record.dtype, encoded)
    embeds = (most, vision.tokens_per_tile, manifest.decoder.hidden_size)
    return Port("features", record.dtype, encoded), Port("embeds", record.dtype, embeds)


def cache_names(contract: DecoderContract) -> list[str]:
    return [f"{i}.{kind}" for i in range(contract.layers) for kind in ("key", "value")]


def decoder_tensors(manifest: Manifest, record: EngineRecord) -> tuple[tuple[Port, ...], dict[str, str]]:
    """All tensors of a decoder's engine: those that pass through the host, and the dtypes of those that do not."""
    cache = CACHE_DTYPES[record.precision]
    resident = {
        f"{past}.{name}": cache for name in cache_names(manifest.decoder) for past in ("past", "present")
    }
    rows = _most(record, "logit_positions")
    ports = (
        Port("inputs_embeds", record.dtype, _most(record, "inputs_embeds")),
        Port("past_lengths", "int32", _most(record, "past_lengths")),
        Port("logit_positions", "int64", rows),
        Port("logits", "float32", (*rows, manifest.decoder.vocab_size)),
        Port("greedy", "int32", rows),
        Port("greedy_logit", "float32", rows),
    )
    return ports, resident


def _most(record: EngineRecord, name: str) -> Shape:
    """The largest shape of an input that any profile takes."""
    return max((each.inputs[name].max for each in record.profiles), key=prod)
