"""Who is asked: a server by its URL, or artifacts in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.benchmark.measure import Asked
from vitrail.benchmark.workload import Tiling
from vitrail.manifest import PromptContract


@dataclass(frozen=True, slots=True)
class Target:
    """`close`, from any thread, wakes everyone who waits for an answer."""

    asked: Asked
    tiling: Tiling
    fields: dict[str, Any]
    close: Callable[[], None]


@contextmanager
def server(url: str, *, timeout_s: float, **options: Any) -> Iterator[Target]:
    """A server's gRPC address; options are those of `vitrail.Client`. Raises ServerError where none answers.

    Nothing is sent twice: a second try would hide the failure and its time.
    """
    from vitrail.client import Client  # noqa: PLC0415 - gRPC, only here

    with Client(url, idle_timeout_s=timeout_s, retries=0, **options) as client:
        contract = client.info()
        fields = {
            "target": "server",
            "url": client.target,
            "route": client.route,
            "shared_memory": client.shared_memory,
            **contract.model_dump(mode="json", exclude={"prompt", "special", "version"}),
        }
        yield Target(client, _tiling(contract.prompt, contract.tile_size), fields, client.close)


@contextmanager
def artifacts(directory: Path, **settings: Any) -> Iterator[Target]:
    """An export, run in this process with the settings of `Engine.load`. Raises ArtifactError, OptionError."""
    from vitrail.engine import Engine  # noqa: PLC0415 - onnxruntime, only here

    with Engine.load(directory, **settings) as engine:
        manifest = engine.manifest
        fields = {
            "target": "in-process",
            "name": manifest.name,
            "tile_size": manifest.vision.tile_size,
            "tokens_per_tile": manifest.vision.tokens_per_tile,
            "slots": engine.statistics.slots,
            "provider": str(settings.get("provider", "cpu")),
            "vision_precision": manifest.vision.precision,
            "decoder_precision": manifest.decoder.precision,
            "prefill": manifest.decoder.prefill,
            "cache": manifest.decoder.cache_dtype,
            "settings": {name: str(value) for name, value in settings.items()},
        }
        yield Target(engine, _tiling(manifest.prompt, manifest.vision.tile_size), fields, engine.close)


def _tiling(contract: PromptContract, tile_size: int) -> Tiling:
    return Tiling(tile_size, contract.max_tiles, contract.thumbnail)
