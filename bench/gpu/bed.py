"""One model at one precision, opened: vitrail's sessions, PyTorch on the same weights, and what is measured of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench.gpu.artifacts import write_artifacts
from bench.gpu.contestants import Contestant, Torch, Vitrail
from bench.gpu.device import Device
from bench.gpu.figures import Figures, Size
from bench.gpu.models import Sizes, Subject
from bench.gpu.peer import TorchPeer
from bench.gpu.plan import Outcome, reason
from bench.gpu.roofline import Roofline, Work
from bench.gpu.serving import answer_batch, answer_pictures, engine_of, first_token, pictures
from bench.gpu.thread import OneThread
from bench.gpu.timing import interleaved
from bench.gpu.weights import RandomWeights

from vitrail.core import Float, Int32, Uint8
from vitrail.engine import Engine
from vitrail.manifest import Manifest
from vitrail.session.open import open_decoder, open_vision
from vitrail.tokenizer import load_tokenizer

VITRAIL, TORCH, COMPILED = "vitrail", "torch", "torch compiled"
REQUESTS_AT_ONCE = 3


@dataclass(frozen=True, slots=True)
class Bench:
    """What every model is measured with: where artifacts go is `work`."""

    device: Device
    sizes: Sizes
    roof: Roofline
    figures: Figures
    work: Path


@dataclass(slots=True)
class Bed:
    """Stages write what they find to the bench's figures."""

    subject: Subject
    bench: Bench
    manifest: Manifest
    vitrail: Vitrail
    engine: Engine
    load: Work
    peer: TorchPeer | None = None
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def parity(self, tokens: int) -> None:
        """Whether it is the same model: cosines to the peer's embeds of a tile and logits behind random tokens.

        Raises ArithmeticError where something is not finite: times of that would say nothing.
        """
        pixels, ids = self._tiles(1), self._ids(tokens)
        found = {"vision": self.vitrail.see(pixels), "logits": self.vitrail.logits(ids)}
        for name, array in found.items():
            if not np.isfinite(array.astype(np.float32)).all():
                raise ArithmeticError(f"{name} of vitrail are not finite")
        peers = (
            {} if self.peer is None else {"vision": self.peer.see(pixels), "logits": self.peer.logits(ids)}
        )
        cosines = {
            f"{name}_cosine": _cosine(found[name], each.float().cpu().numpy()) for name, each in peers.items()
        }
        self.bench.figures.add(self.subject, "parity", {"tokens": tokens}, VITRAIL, **cosines)

    def vision(self, tiles: int) -> None:
        pixels = self._tiles(tiles)
        floors = {name: self.load.vision_floor_ms(self.bench.roof, tiles) for name in (VITRAIL, TORCH)}
        self._race("vision", {"tiles": tiles}, lambda who: lambda: who.see(pixels), floors)

    def prefill(self, tokens: int) -> None:
        ids = self._ids(tokens)
        dense = Work(self.subject.config, self.load.dense_bytes)
        floors = {VITRAIL: self.load.prefill_floor_ms(self.bench.roof, tokens)}
        floors[TORCH] = dense.prefill_floor_ms(self.bench.roof, tokens)
        self._race("prefill", {"tokens": tokens}, lambda who: lambda: who.prefill(ids), floors)

    def decode(self, rows: int) -> None:
        steps, past = self.bench.sizes.steps, self.bench.sizes.past
        ids, total = self._ids(past), steps * (self.bench.sizes.rounds + 1)
        contestants = self._contestants()
        for who in contestants.values():
            who.begin(ids, rows=rows, steps=total)
        dense = Work(self.subject.config, self.load.dense_bytes)
        cached = past + total / 2
        floors = {VITRAIL: steps * self.load.decode_floor_ms(self.bench.roof, rows, cached)}
        floors[TORCH] = steps * dense.decode_floor_ms(self.bench.roof, rows, cached)
        size: Size = {"rows": rows, "past": past, "steps": steps}
        self._race("decode", size, lambda who: lambda: who.decode(steps), floors, contestants)

    def compiled(self) -> None:
        """torch.compile alone, on the largest vision run and single decode steps: compiling takes its time."""
        if self.peer is None:
            raise RuntimeError("torch is not here")
        who = Torch(self.peer, compiled=True)
        steps, past, tiles = self.bench.sizes.steps, self.bench.sizes.past, self.bench.sizes.tiles[0]
        pixels = self._tiles(tiles)
        self._race("vision", {"tiles": tiles}, lambda who: lambda: who.see(pixels), {}, {COMPILED: who})
        who.begin(self._ids(past), rows=1, steps=steps * (self.bench.sizes.rounds + 1))
        size: Size = {"rows": 1, "past": past, "steps": steps}
        self._race("decode", size, lambda who: lambda: who.decode(steps), {}, {COMPILED: who})
        who.end()

    def answers(self, asked: tuple[int, int]) -> None:
        """(tiles, how many at once): pictures per second and time to the first token."""
        tiles, concurrency = asked
        requests = max(5, REQUESTS_AT_ONCE * concurrency) if self.bench.device.is_gpu else concurrency + 1
        found = answer_pictures(
            self.engine, tiles=tiles, concurrency=concurrency, requests=requests, sizes=self.bench.sizes
        )
        size: Size = {
            "tiles": tiles,
            "concurrency": concurrency,
            "answer_tokens": self.bench.sizes.answer_tokens,
        }
        self.bench.figures.add(self.subject, "answers", size, VITRAIL, **found)

    def peer_answers(self, asked: tuple[int, int]) -> None:
        """(tiles, rows): the peer's time to the first token, and its pictures per second in batches of `rows`."""
        tiles, rows = asked
        if self.peer is None:
            raise RuntimeError("torch is not here")
        peer, engine, rounds = self.peer, self.engine, self.bench.sizes.rounds
        asks = pictures(self.manifest, tiles=tiles, count=rows, sizes=self.bench.sizes)
        new = self.bench.sizes.answer_tokens
        actions = {
            "first": lambda: first_token(peer, engine, asks[0]),
            "batch": lambda: answer_batch(peer, engine, asks, answer_tokens=new),
        }
        found = interleaved(actions, rounds=min(3, rounds), synchronize=self.bench.device.synchronize)
        for which, count in (("first", 1), ("batch", rows)):
            size: Size = {"tiles": tiles, "concurrency": count, "answer_tokens": new}
            series = found[which]
            milliseconds = series.median_ms
            values: dict[str, Any] = {"failure": series.failure} if milliseconds is None else {}
            if milliseconds is not None and which == "first":
                values["ttft_ms"] = milliseconds
            elif milliseconds is not None:
                values["images_per_s"] = 1e3 * rows / milliseconds
            self.bench.figures.add(self.subject, "answers", size, TORCH, **values)

    def drop(self) -> None:
        """Let go of everything that holds device memory, though somebody may still hold the bed."""
        del self.vitrail, self.engine, self.peer

    def _contestants(self) -> dict[str, Contestant]:
        contestants: dict[str, Contestant] = {VITRAIL: self.vitrail}
        return contestants if self.peer is None else {**contestants, TORCH: Torch(self.peer)}

    def _race(
        self,
        stage: str,
        size: Size,
        action: Callable[[Contestant], Callable[[], object]],
        floors: dict[str, float],
        contestants: dict[str, Contestant] | None = None,
    ) -> None:
        contestants = contestants or self._contestants()
        found = interleaved(
            {name: action(who) for name, who in contestants.items()},
            rounds=self.bench.sizes.rounds,
            synchronize=self.bench.device.synchronize,
        )
        self.bench.device.release()
        for name, series in found.items():
            self.bench.figures.add_series(self.subject, stage, size, name, series, floor_ms=floors.get(name))

    def _tiles(self, count: int) -> Uint8:
        side = self.manifest.vision.tile_size
        return self.random.integers(0, 256, (count, 3, side, side), np.uint8)

    def _ids(self, count: int) -> Int32:
        return self.random.integers(0, self.manifest.decoder.vocab_size, count).astype(np.int32)


def _cosine(found: Float, expected: Float) -> float:
    one, other = (np.asarray(each, np.float64).ravel() for each in (found, expected))
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


@contextmanager
def open_bed(subject: Subject, bench: Bench, *, with_peer: bool) -> Iterator[Bed]:
    """Write the artifacts, open the sessions, build the peer; memory of every step goes to the figures."""
    device, directory = bench.device, bench.work / subject.title.replace(" ", "-")
    before = device.used_bytes()
    memory: dict[str, int] = {}
    try:
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            manifest = write_artifacts(subject, directory)
            memory["weights"] = sum(each.size_bytes for each in manifest.artifacts.values())
            bed = _open(subject, bench, directory, manifest, stack)
            memory["sessions"] = device.used_bytes() - before
            if with_peer:
                bed.peer = _peer(subject, bench)
                memory["peer_weights"] = bed.peer.weight_bytes if bed.peer else 0
            yield bed
            memory["after"] = device.used_bytes() - before
            bed.drop()
            del bed
    finally:
        device.release()
    bench.figures.add_memory(subject, **memory, left=device.used_bytes() - before)


def _open(subject: Subject, bench: Bench, directory: Path, manifest: Manifest, stack: ExitStack) -> Bed:
    sizes, provider = bench.sizes, bench.device.provider
    vision = open_vision(directory, manifest, provider, tiles_per_run=max(sizes.tiles))
    slots, capacity = sizes.slots, sizes.context_tokens
    decoder = OneThread(lambda: open_decoder(directory, manifest, provider, slots=slots, capacity=capacity))
    stack.callback(decoder.close)
    tokenizer = load_tokenizer(directory, manifest.tokenizer)
    engine = engine_of(manifest, tokenizer, vision, decoder, sizes=sizes, tiles_per_look=max(sizes.tiles))
    stack.callback(engine.close)
    load = Work(subject.config, manifest.artifacts["decoder.onnx.data"].size_bytes)
    return Bed(subject, bench, manifest, Vitrail(vision, decoder), engine, load)


def _peer(subject: Subject, bench: Bench) -> TorchPeer | None:
    """None where it does not fit: that costs its own figures only."""
    device = bench.device
    dtype = torch.float16 if device.is_gpu else torch.float32
    try:
        return TorchPeer(subject.config, RandomWeights(subject.config), device=device.kind, dtype=dtype)
    except torch.OutOfMemoryError as error:
        bench.figures.note(Outcome(f"{subject.title}: torch", failure=reason(error)))
        return None
