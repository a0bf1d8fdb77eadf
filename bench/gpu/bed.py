"""One model at one precision, opened: vitrail's sessions, PyTorch on the same weights, and what is measured of them."""

from __future__ import annotations

import importlib
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from bench.gpu.artifacts import write_artifacts
from bench.gpu.contestants import Contestant, Torch, Vitrail
from bench.gpu.device import Device
from bench.gpu.figures import Figures, Size
from bench.gpu.models import Sizes, Subject
from bench.gpu.plan import Outcome, reason
from bench.gpu.roofline import Roofline, Work
from bench.gpu.serving import answer_batch, answer_pictures, engine_of, pictures
from bench.gpu.thread import OneThread
from bench.gpu.timing import interleaved
from bench.gpu.weights import RandomWeights

from vitrail.core import Float, Int32, Uint8
from vitrail.engine import Engine
from vitrail.manifest import Manifest
from vitrail.session.open import open_decoder, open_vision
from vitrail.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from bench.gpu.peer import TorchPeer

VITRAIL, TORCH, COMPILED = "vitrail", "torch", "torch compiled"
REQUESTS_AT_ONCE = 3
PEER_ROUNDS = 3  # of whole answers

Action = Callable[[Contestant], object]


class Broken(Exception):
    """A stage of vitrail has no figure; why."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What every model is measured with: where artifacts go is `work`. roof: None where it could not be measured."""

    device: Device
    sizes: Sizes
    roof: Roofline | None
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
        figures, size = self.bench.figures, {"tokens": tokens}
        try:
            cosines = {} if self.peer is None else self._cosines(self.peer, pixels, ids, found)
        except Exception as error:  # noqa: BLE001 - the peer costs its own figures only
            cosines = {}
            figures.add(self.subject, "parity", size, TORCH, failure=reason(error))
        figures.add(self.subject, "parity", size, VITRAIL, **cosines)

    def vision(self, tiles: int) -> None:
        pixels = self._tiles(tiles)
        floors = self._floors(lambda work, roof: work.vision_floor_ms(roof, tiles))
        self._race("vision", {"tiles": tiles}, lambda who: who.see(pixels), floors)

    def prefill(self, tokens: int) -> None:
        ids = self._ids(tokens)
        floors = self._floors(lambda work, roof: work.prefill_floor_ms(roof, tokens))
        self._race("prefill", {"tokens": tokens}, lambda who: who.prefill(ids), floors)

    def decode(self, rows: int) -> None:
        steps, past = self.bench.sizes.steps, self.bench.sizes.past
        cached = past + steps * (self.bench.sizes.rounds + 1) / 2
        floors = self._floors(lambda work, roof: steps * work.decode_floor_ms(roof, rows, cached))
        self._race_decode(rows, floors)

    def compiled(self) -> None:
        """torch.compile alone, on the largest vision run and single decode steps: compiling takes its time."""
        who: dict[str, Contestant] = {COMPILED: Torch(self._here(), compiled=True)}
        tiles = self.bench.sizes.tiles[0]
        pixels = self._tiles(tiles)
        self._race("vision", {"tiles": tiles}, lambda who: who.see(pixels), {}, who)
        self._race_decode(1, {}, who)

    def answers(self, asked: tuple[int, int]) -> None:
        """(tiles, how many at once): pictures per second and time to the first token; the peer's beside one at a time."""
        tiles, concurrency = asked
        requests = max(5, REQUESTS_AT_ONCE * concurrency) if self.bench.device.is_gpu else concurrency + 1
        found = answer_pictures(
            self.engine, tiles=tiles, concurrency=concurrency, requests=requests, sizes=self.bench.sizes
        )
        self.bench.figures.add(self.subject, "answers", self._asked(asked), VITRAIL, **found)
        if concurrency == 1 and self.peer is not None:
            self._peer_answers(self.peer, asked, answer_tokens=1)

    def peer_answers(self, asked: tuple[int, int]) -> None:
        """(tiles, rows): the peer's pictures per second in batches of `rows`."""
        self._peer_answers(self._here(), asked, answer_tokens=self.bench.sizes.answer_tokens)

    def _peer_answers(self, peer: TorchPeer, asked: tuple[int, int], *, answer_tokens: int) -> None:
        tiles, rows = asked

        def answer() -> None:
            asks = pictures(self.manifest, tiles=tiles, count=rows, sizes=self.bench.sizes)
            answer_batch(peer, self.engine, asks, answer_tokens=answer_tokens)

        rounds = min(PEER_ROUNDS, self.bench.sizes.rounds)
        series = interleaved({TORCH: answer}, rounds=rounds, synchronize=self.bench.device.synchronize)[TORCH]
        taken_ms = series.median_ms
        values = {"failure": series.failure} if taken_ms is None else _answered(taken_ms, rows, answer_tokens)
        self.bench.figures.add(self.subject, "answers", self._asked(asked), TORCH, **values)

    def drop(self) -> None:
        """Let go of everything that holds device memory, though somebody may still hold the bed."""
        del self.vitrail, self.engine, self.peer

    def _here(self) -> TorchPeer:
        if self.peer is None:
            raise Broken("torch is not here")
        return self.peer

    def _floors(self, floor_ms: Callable[[Work, Roofline], float]) -> dict[str, float]:
        """Of vitrail with its weights as stored, and of the peer with its own in half precision."""
        roof, dense = self.bench.roof, Work(self.subject.config, self.load.dense_bytes)
        return {} if roof is None else {VITRAIL: floor_ms(self.load, roof), TORCH: floor_ms(dense, roof)}

    def _contestants(self) -> dict[str, Contestant]:
        contestants: dict[str, Contestant] = {VITRAIL: self.vitrail}
        return contestants if self.peer is None else {**contestants, TORCH: Torch(self.peer)}

    def _cosines(
        self, peer: TorchPeer, pixels: Uint8, ids: Int32, found: dict[str, Float]
    ) -> dict[str, float]:
        peers = {"vision": peer.see(pixels), "logits": peer.logits(ids)}
        return {
            f"{name}_cosine": _cosine(found[name], each.float().cpu().numpy()) for name, each in peers.items()
        }

    def _race_decode(
        self, rows: int, floors: dict[str, float], contestants: dict[str, Contestant] | None = None
    ) -> None:
        steps, past = self.bench.sizes.steps, self.bench.sizes.past
        ids, total = self._ids(past), steps * (self.bench.sizes.rounds + 1)

        def begin(who: Contestant) -> None:
            who.begin(ids, rows=rows, steps=total)
            who.decode(steps)

        size = {"rows": rows, "past": past, "steps": steps}
        self._race("decode", size, lambda who: who.decode(steps), floors, contestants, warm_up=begin)

    def _race(
        self,
        stage: str,
        size: Size,
        action: Action,
        floors: dict[str, float],
        contestants: dict[str, Contestant] | None = None,
        *,
        warm_up: Action | None = None,
    ) -> None:
        """A row for each contestant. Raises Broken where vitrail fails, after the others."""
        contestants = contestants or self._contestants()
        found = interleaved(
            {name: partial(action, who) for name, who in contestants.items()},
            rounds=self.bench.sizes.rounds,
            synchronize=self.bench.device.synchronize,
            warm_ups={name: partial(warm_up or action, who) for name, who in contestants.items()},
        )
        self.bench.device.release()
        failure = found[VITRAIL].failure if VITRAIL in found else None
        for name, series in found.items():
            if name != VITRAIL or failure is None:
                floor_ms = floors.get(name)
                self.bench.figures.add_series(self.subject, stage, size, name, series, floor_ms=floor_ms)
        if failure is not None:
            raise Broken(failure)

    def _asked(self, asked: tuple[int, int]) -> Size:
        tiles, concurrency = asked
        return {"tiles": tiles, "concurrency": concurrency, "answer_tokens": self.bench.sizes.answer_tokens}

    def _tiles(self, count: int) -> Uint8:
        side = self.manifest.vision.tile_size
        return self.random.integers(0, 256, (count, 3, side, side), np.uint8)

    def _ids(self, count: int) -> Int32:
        return self.random.integers(0, self.manifest.decoder.vocab_size, count).astype(np.int32)


def _answered(taken_ms: float, rows: int, tokens: int) -> dict[str, float]:
    """One token is the time to the first; more are the pictures' rate."""
    return {"ttft_ms": taken_ms} if tokens == 1 else {"images_per_s": 1e3 * rows / taken_ms}


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
    """None where it cannot be had: that costs its own figures only."""
    peer, failure, start_s = None, None, time.monotonic()
    try:
        kind = importlib.import_module("bench.gpu.peer").TorchPeer
        peer = kind(subject.config, RandomWeights(subject.config), device=bench.device.kind)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the peer's
        failure = reason(error)
    bench.device.release()
    seconds = round(time.monotonic() - start_s, 1)
    bench.figures.note(Outcome(f"{subject.title}: torch", seconds, failure=failure))
    return peer
