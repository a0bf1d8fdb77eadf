"""Whole answers about pictures: time to the first token, and pictures per second."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from bench.gpu.models import Sizes

from vitrail.benchmark.load import Load
from vitrail.benchmark.report import metric_fields
from vitrail.benchmark.sweep import run_sweep
from vitrail.benchmark.target import Target
from vitrail.benchmark.workload import Ask, Tiling, Workload, ask, questions, shapes
from vitrail.decoder import Decoder, Settings
from vitrail.engine import Engine
from vitrail.errors import ServerError
from vitrail.manifest import Manifest
from vitrail.session import DecoderSession, VisionSession
from vitrail.tokenizer import Tokenizer

if TYPE_CHECKING:
    from bench.gpu.peer import TorchPeer

TIMEOUT_S = 120.0
WORDS = 4
PHASES = ("preprocess_ms", "vision_ms", "queue_ms", "prefill_ms")


def engine_of(
    manifest: Manifest,
    tokenizer: Tokenizer,
    vision: VisionSession,
    decoder: DecoderSession,
    *,
    sizes: Sizes,
    tiles_per_look: int,
) -> Engine:
    """An engine over opened sessions, which outlive it. Nothing is remembered from one question to the next."""
    settings = Settings(
        slots=decoder.slots, prefill_chunk=sizes.context_tokens, queue_limit=1024, prefix_cache=False
    )
    return Engine(
        manifest=manifest,
        tokenizer=tokenizer,
        vision=vision,
        decoder=Decoder(decoder, tokenizer, manifest.tokenizer, settings),
        tiles_per_look=tiles_per_look,
        feature_cache_bytes=0,
    )


def answer_pictures(
    engine: Engine, *, tiles: int, concurrency: int, requests: int, sizes: Sizes
) -> dict[str, Any]:
    """A closed loop of questions about pictures of so many tiles; medians and throughput of those answered.

    Raises ServerError where one fails.
    """
    target = Target(engine, _tiling(engine.manifest), {}, engine.close)
    workload = _workload(tiles, sizes)
    load = Load(concurrency=concurrency, requests=requests, warmup=max(1, concurrency // 2))
    (tally,) = run_sweep(target, workload, [load], timeout_s=TIMEOUT_S)
    if tally.failures or tally.ending != "complete":
        raise ServerError(f"{len(tally.failures)} of {requests} failed: {tally.failures[:1]}")
    metrics = metric_fields(tally)
    return {
        "ttft_ms": metrics["time_to_first_token"]["p50"],
        "tpot_ms": metrics["time_per_output_token"]["p50"],
        "images_per_s": metrics["request_throughput"]["avg"],
        "prompt_tokens": metrics["input_sequence_length"]["p50"],
        "client_wait_s": tally.waited_for_feed_s,
        **{name: metrics[name]["p50"] for name in PHASES if name in metrics},
    }


def pictures(manifest: Manifest, *, tiles: int, count: int, sizes: Sizes) -> list[Ask]:
    """Questions that no run of `answer_pictures` asks."""
    workload = _workload(tiles, sizes)
    found = questions(workload, shapes(workload, _tiling(manifest)), stage="pictures of the peer")
    return [ask(question, workload) for question in islice(found, count)]


def _workload(tiles: int, sizes: Sizes) -> Workload:
    return Workload(tiles=(tiles,), prompt_words=WORDS, output_tokens=sizes.answer_tokens)


def _tiling(manifest: Manifest) -> Tiling:
    return Tiling(manifest.vision.tile_size, manifest.prompt.max_tiles, manifest.prompt.thumbnail)


def answer_batch(peer: TorchPeer, engine: Engine, asks: list[Ask], *, answer_tokens: int) -> None:
    """The peer's whole answers to as many questions as one batch, prompts cut to the shortest. vitrail opens and cuts the
    pictures, for both alike.
    """
    prompts = [engine.prompt(each.messages, max_tiles=each.options["max_tiles"]) for each in asks]
    length = min(len(prompt.token_ids) for prompt in prompts)
    ids = np.array([prompt.token_ids[:length] for prompt in prompts], np.int32)
    tiles = np.concatenate([prompt.tiles for prompt in prompts])
    image_id = engine.manifest.tokenizer.image_context_id
    first, cache = peer.read(ids, tiles, image_id=image_id, capacity=length + answer_tokens - 1)
    peer.decode(first, cache, steps=answer_tokens - 1).cpu()
