"""Does `vitrail plan` agree with what is used? Fills every slot of an engine or a server and compares peak memory.

    python bench/memory.py artifacts --slots 2 --context 2048
    python bench/memory.py artifacts --slots 4 --context 4096 --tiles 12 --serve

Every slot gets a picture of its own, with its thumbnail, and text up to its last tokens; then two more questions come. A server is `vitrail serve` with all
its processes; memory is the sum of proportional set sizes at its fullest moment. Prints a card, then one JSON line,
which it also writes to bench/results/memory-MODEL-FORM-HOW.json.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ending import ending
from export import commit, cpu_name  # noqa: TID251  (bench/export.py)
from PIL import Image
from resident import Sampler

from vitrail.core import Text
from vitrail.engine import Engine
from vitrail.errors import ServerError, VitrailError
from vitrail.manifest import load_manifest
from vitrail.plan.memory import Plan, plan_memory
from vitrail.plan.model import Load, model_of
from vitrail.plan.size import MIB
from vitrail.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

RESULTS = Path(__file__).parent / "results"
ANSWER_TOKENS = 4
START_TIMEOUT_S = 300.0


@ending()
def main() -> None:
    args = arguments()
    load = Load(
        slots=args.slots,
        context_tokens=args.context,
        prefill_chunk=args.prefill_chunk,
        tiles_per_run=args.tiles_per_run,
        feature_cache_bytes=args.feature_cache << 20,
    )
    plan = planned(args, load)
    opened = time.perf_counter()
    with (server if args.serve else process)(args, load) as (asked, pid), Sampler(pid) as sampler:
        ready_s = time.perf_counter() - opened
        ready = sum(sampler.look().values())
        tokens = fill(asked, load, tiles=args.tiles, artifacts=args.artifacts)
    card = card_of(plan, args, sampler) | {
        "prompt_tokens": tokens,
        "ready_s": round(ready_s, 1),
        "ready_mib": ready // MIB,
    }
    for name, value in card.items():
        print(f"{name:<20} {value}", file=sys.stderr)
    line = json.dumps(card)
    form = card["precision"].replace("/", "-").replace(" ", "-").replace(",", "")
    name = f"memory-{plan.model.name}-{form}-{card['how']}.json"
    (RESULTS / name).write_text(line + "\n", encoding="utf-8")
    print(line)


def planned(args: argparse.Namespace, load: Load) -> Plan:
    """For a picture of as many tiles as each slot gets."""
    model = model_of(load_manifest(args.artifacts), openvino=args.provider.startswith("openvino"))
    model = replace(model, name=args.name or model.name, tiles_per_picture=tiles_of(args.tiles))
    return plan_memory(model, load, server=args.serve)


def tiles_of(tiles: int) -> int:
    """With the thumbnail, which a picture of one tile has not."""
    return tiles + (tiles > 1)


def card_of(plan: Plan, args: argparse.Namespace, sampler: Sampler) -> dict[str, Any]:
    used = sum(sampler.peak.values())
    return {
        "bench": "memory",
        "model": plan.model.name,
        "precision": f"{plan.model.decoder_form}/{plan.model.vision_form}",
        "how": "server" if args.serve else "process",
        "slots": plan.load.slots,
        "context": plan.load.context_tokens,
        "tiles": tiles_of(args.tiles),
        "tiles_per_run": plan.load.tiles_per_run,
        "planned_mib": plan.host_bytes // MIB,
        "peak_mib": used // MIB,
        "planned_over_used": round(plan.host_bytes / used, 3),
        "processes_mib": {name: size // MIB for name, size in sampler.peak.items()},
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


@contextmanager
def process(args: argparse.Namespace, load: Load) -> Iterator[tuple[Any, int]]:
    with Engine.load(
        args.artifacts,
        slots=load.slots,
        context_tokens=load.context_tokens,
        prefill_chunk=load.prefill_chunk,
        tiles_per_run=load.tiles_per_run,
        feature_cache_bytes=load.feature_cache_bytes,
        provider=args.provider,
    ) as engine:
        yield engine, os.getpid()


@contextmanager
def server(args: argparse.Namespace, load: Load) -> Iterator[tuple[Any, int]]:
    from vitrail.client import Client  # noqa: PLC0415 - so that a process measured by itself does not hold it

    port = free_port()
    values = {
        "grpc-port": port,
        "http-port": 0,
        "metrics-port": 0,
        "slots": load.slots,
        "context": load.context_tokens,
        "prefill-chunk": load.prefill_chunk,
        "tiles-per-run": load.tiles_per_run,
        "feature-cache": load.feature_cache_bytes >> 20,
        "provider": args.provider,
    }
    options = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    command = [str(Path(sys.executable).with_name("vitrail")), "serve", str(args.artifacts), *options]
    with subprocess.Popen(command) as running:
        try:
            with Client(f"127.0.0.1:{port}", idle_timeout_s=3000.0) as client:
                wait_ready(client, running)
                yield client, running.pid
        finally:
            running.terminate()


def wait_ready(client: Any, running: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not answers(client):
        if running.poll() is not None:
            raise ServerError("the server ended before it was ready")
        if time.monotonic() > deadline:
            raise ServerError(f"the server did not become ready in {START_TIMEOUT_S:g} s")
        time.sleep(0.1)


def answers(client: Any) -> bool:
    try:
        client.info()
    except VitrailError:
        return False
    return True


def free_port() -> int:
    with closing(socket.socket()) as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def fill(asked: Any, load: Load, *, tiles: int, artifacts: Path) -> int:
    """Ask a question for every slot at once, then two small ones beside what is cached; tokens of the longest prompt."""
    with ThreadPoolExecutor(load.slots) as pool:
        size = load_manifest(artifacts).vision.tile_size

        def ask(slot: int, words: int, tiles: int = tiles) -> int:
            noise = np.random.default_rng(slot).integers(0, 255, (size, size * tiles, 3), np.uint8)
            content = [
                {"type": "image", "image": Image.fromarray(noise)},
                {"type": "text", "text": " a" * words},
            ]
            done = asked.chat(
                [{"role": "user", "content": content}],
                max_tiles=tiles,
                max_tokens=ANSWER_TOKENS,
                deadline_s=3000,
            )
            return int(done.report.prompt_tokens)

        words = words_for(load, tiles=tiles, artifacts=artifacts)
        tokens = max(pool.map(ask, range(load.slots), [words] * load.slots))
        list(pool.map(ask, (load.slots, load.slots + 1), (1, 1), (1, 1)))
        return tokens


def words_for(load: Load, *, tiles: int, artifacts: Path) -> int:
    """How many words fill a slot but for the answer and the template, by this tokenizer."""
    manifest = load_manifest(artifacts)
    tokenizer = load_tokenizer(artifacts, manifest.tokenizer)
    per_word = tokenizer.encode([Text(" a" * 200)], 1).size / 200
    template = 200
    pictures = tiles_of(tiles) * manifest.vision.tokens_per_tile
    return max(1, int((load.context_tokens - ANSWER_TOKENS - template - pictures) / per_word))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifacts", type=Path)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--prefill-chunk", type=int, default=512)
    parser.add_argument("--tiles", type=int, default=1, help="of each picture, beside its thumbnail")
    parser.add_argument("--tiles-per-run", type=int, default=8)
    parser.add_argument("--feature-cache", type=int, default=0, help="MiB")
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--name", help="what the result calls the model, instead of its export's name")
    parser.add_argument("--serve", action="store_true", help="a server with its processes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
