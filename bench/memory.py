"""Does `vitrail plan` agree with what is used? Fills every slot of an engine or a server and compares peak memory.

    python bench/memory.py artifacts --slots 2 --context 2048
    python bench/memory.py artifacts --slots 2 --context 2048 --serve

Every slot gets a picture of its own and text up to its last tokens. Prints a card, then one JSON line, which it also
writes to bench/results/memory-MODEL-DECODER-VISION-HOW.json.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from export import commit, cpu_name  # noqa: TID251  (bench/export.py)
from PIL import Image

from vitrail.core import Text
from vitrail.engine import Engine
from vitrail.manifest import load_manifest
from vitrail.plan.memory import plan_memory
from vitrail.plan.model import Load, model_of
from vitrail.plan.size import MIB
from vitrail.settings import Settings
from vitrail.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RESULTS = Path(__file__).parent / "results"
ANSWER_TOKENS = 4


def main() -> None:
    args = arguments()
    load = Load(
        slots=args.slots,
        context_tokens=args.context,
        prefill_chunk=args.prefill_chunk,
        tiles_per_run=args.tiles_per_run,
        feature_cache_bytes=0,
    )
    model = replace(model_of(load_manifest(args.artifacts)), tiles_per_picture=args.tiles)
    plan = plan_memory(model, load, server=args.serve)
    with (server if args.serve else process)(args.artifacts, load) as (asked, peaks):
        tokens = fill(asked, load, tiles=args.tiles, artifacts=args.artifacts)
        measured = peaks()
    used = sum(measured.values())
    how = "server" if args.serve else "process"
    card = {
        "bench": "memory",
        "model": plan.model.name,
        "precision": f"{plan.model.decoder.precision}/{plan.model.vision.precision}",
        "how": how,
        "slots": load.slots,
        "context": load.context_tokens,
        "prompt_tokens": tokens,
        "tiles": args.tiles,
        "tiles_per_run": load.tiles_per_run,
        "planned_mib": plan.host_bytes // MIB,
        "peak_rss_mib": used // MIB,
        "planned_over_used": round(plan.host_bytes / used, 3),
        "processes_mib": {name: size // MIB for name, size in measured.items()},
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "vitrail": version("vitrail"),
        "onnxruntime": version("onnxruntime"),
        "commit": commit(),
        "planned_parts_mib": {
            f"{item.kind} {item.part}": item.size_bytes // MIB
            for item in plan.items
            if item.size_bytes >= MIB
        },
    }
    for name, value in card.items():
        print(f"{name:<20} {value}")
    line = json.dumps(card)
    decoder, vision = plan.model.decoder.precision, plan.model.vision.precision
    name = f"memory-{plan.model.name}-{decoder}-{vision}-{how}.json"
    (RESULTS / name).write_text(line + "\n", encoding="utf-8")
    print(line)


@contextmanager
def process(artifacts: Path, load: Load) -> Iterator[tuple[Any, Callable[[], dict[str, int]]]]:
    with Engine.load(
        artifacts,
        slots=load.slots,
        context_tokens=load.context_tokens,
        prefill_chunk=load.prefill_chunk,
        tiles_per_run=load.tiles_per_run,
        feature_cache_bytes=load.feature_cache_bytes,
    ) as engine:
        yield engine, lambda: {"python": peak_bytes(os.getpid())}


@contextmanager
def server(artifacts: Path, load: Load) -> Iterator[tuple[Any, Callable[[], dict[str, int]]]]:
    # Here, so that a process that is measured by itself does not hold them.
    from vitrail.client import Client  # noqa: PLC0415
    from vitrail.triton.options import ServerOptions  # noqa: PLC0415
    from vitrail.triton.repository import ServingSettings  # noqa: PLC0415
    from vitrail.triton.serve import serving  # noqa: PLC0415

    settings = ServingSettings(
        decoder=Settings(
            slots=load.slots, context_tokens=load.context_tokens, prefill_chunk=load.prefill_chunk
        ),
        tiles_per_run=load.tiles_per_run,
        feature_cache_bytes=load.feature_cache_bytes,
    )
    options = ServerOptions(grpc_port=0, http_port=0, metrics_port=0)
    with serving(artifacts, options=options, settings=settings) as running:

        def peaks() -> dict[str, int]:
            stubs = {name: peak_bytes(stub.pid) for name, stub in running.stubs().items()}
            return {"tritonserver": peak_bytes(running.pid), **stubs}

        with Client(running.grpc_url) as client:
            yield client, peaks


def fill(asked: Any, load: Load, *, tiles: int, artifacts: Path) -> int:
    """Ask a question for every slot at once; how many tokens the longest prompt had."""
    with ThreadPoolExecutor(load.slots) as pool:
        size = load_manifest(artifacts).vision.tile_size

        def ask(slot: int, words: int) -> int:
            noise = np.random.default_rng(slot).integers(0, 255, (size, size * tiles, 3), np.uint8)
            content = [
                {"type": "image", "image": Image.fromarray(noise)},
                {"type": "text", "text": " a" * words},
            ]
            done = asked.chat(
                [{"role": "user", "content": content}],
                max_tiles=tiles,
                thumbnail=False,
                max_tokens=ANSWER_TOKENS,
                deadline_s=3000,
            )
            return int(done.report.prompt_tokens)

        words = words_for(load, tiles=tiles, artifacts=artifacts)
        return max(pool.map(ask, range(load.slots), [words] * load.slots))


def words_for(load: Load, *, tiles: int, artifacts: Path) -> int:
    """How many words fill a slot but for the answer and the template, by this tokenizer."""
    manifest = load_manifest(artifacts)
    tokenizer = load_tokenizer(artifacts, manifest.tokenizer)
    per_word = tokenizer.encode([Text(" a" * 200)], 1).size / 200
    template = 200
    free = load.context_tokens - ANSWER_TOKENS - template - tiles * manifest.vision.tokens_per_tile
    return max(1, int(free / per_word))


def peak_bytes(pid: int | None) -> int:
    """The most resident memory that a process has had."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return 1024 * int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmHWM:")))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifacts", type=Path)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--prefill-chunk", type=int, default=512)
    parser.add_argument("--tiles", type=int, default=1)
    parser.add_argument("--tiles-per-run", type=int, default=8)
    parser.add_argument("--serve", action="store_true", help="a server with its processes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
