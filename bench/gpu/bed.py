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
from bench.gpu.roofline import Roofline, Work
from bench.gpu.serving import answer_batch, answer_pictures, engine_of, first_token, pictures
from bench.gpu.thread import OneThread
from bench.gpu.timing import interleaved
from bench.gpu.weights import RandomWeights

from vitrail.core import Int32, Uint8
from vitrail.engine import Engine
from vitrail.manifest import Manifest
from vitrail.session.open import open_decoder, open_vision
from vitrail.tokenizer import load_tokenizer

VITRAIL, TORCH, COMPILED = "vitrail", "torch", "torch compiled"
REQUESTS_AT_ONCE = 3


@dataclass(slots=True)
class Bed:
    """Stages write what they find to `figures`."""

    subject: Subject
    device: Device
    sizes: Sizes
    roof: Roofline
    figures: Figures
    manifest: Manifest
    vitrail: Vitrail
    engine: Engine
    work: Work
    peer: TorchPeer | None = None
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def vision(self, tiles: int) -> None:
        pixels = self._tiles(tiles)
        floors = {name: self.work.vision_floor_ms(self.roof, tiles) for name in (VITRAIL, TORCH)}
        self._race("vision", {"tiles": tiles}, lambda who: lambda: who.see(pixels), floors)

    def prefill(self, tokens: int) -> None:
        ids = self._ids(tokens)
        dense = Work(self.subject.config, self.work.dense_bytes)
        floors = {VITRAIL: self.work.prefill_floor_ms(self.roof, tokens)}
        floors[TORCH] = dense.prefill_floor_ms(self.roof, tokens)
        self._race("prefill", {"tokens": tokens}, lambda who: lambda: who.prefill(ids), floors)

    def decode(self, rows: int) -> None:
        steps, past = self.sizes.steps, self.sizes.past
        ids, total = self._ids(past), steps * (self.sizes.rounds + 1)
        contestants = self._contestants()
        for who in contestants.values():
            who.begin(ids, rows=rows, steps=total)
        dense = Work(self.subject.config, self.work.dense_bytes)
        cached = past + total / 2
        floors = {VITRAIL: steps * self.work.decode_floor_ms(self.roof, rows, cached)}
        floors[TORCH] = steps * dense.decode_floor_ms(self.roof, rows, cached)
        size: Size = {"rows": rows, "past": past, "steps": steps}
        self._race("decode", size, lambda who: lambda: who.decode(steps), floors, contestants)

    def compiled(self) -> None:
        """torch.compile alone, on the largest vision run and single decode steps: compiling takes its time."""
        assert self.peer is not None
        who = Torch(self.peer, compiled=True)
        steps, past, tiles = self.sizes.steps, self.sizes.past, self.sizes.tiles[0]
        pixels = self._tiles(tiles)
        self._race("vision", {"tiles": tiles}, lambda who: lambda: who.see(pixels), {}, {COMPILED: who})
        who.begin(self._ids(past), rows=1, steps=steps * (self.sizes.rounds + 1))
        size: Size = {"rows": 1, "past": past, "steps": steps}
        self._race("decode", size, lambda who: lambda: who.decode(steps), {}, {COMPILED: who})
        who.end()

    def answers(self, tiles: int, concurrency: int) -> None:
        """Pictures per second; at concurrency 1, time to the first token."""
        requests = max(5, REQUESTS_AT_ONCE * concurrency) if self.device.is_gpu else concurrency + 1
        found = answer_pictures(
            self.engine, tiles=tiles, concurrency=concurrency, requests=requests, sizes=self.sizes
        )
        size: Size = {"tiles": tiles, "concurrency": concurrency, "answer_tokens": self.sizes.answer_tokens}
        self.figures.add(self.subject, "answers", size, VITRAIL, **found)

    def peer_answers(self, tiles: int, rows: int) -> None:
        """The peer's time to the first token, and its pictures per second in batches of `rows`."""
        assert self.peer is not None
        peer, engine, rounds = self.peer, self.engine, self.sizes.rounds
        asks = pictures(self.manifest, tiles=tiles, count=rows, sizes=self.sizes)
        new = self.sizes.answer_tokens
        actions = {
            "first": lambda: first_token(peer, engine, asks[0]),
            "batch": lambda: answer_batch(peer, engine, asks, answer_tokens=new),
        }
        found = interleaved(actions, rounds=min(3, rounds), synchronize=self.device.synchronize)
        for which, count in (("first", 1), ("batch", rows)):
            size: Size = {"tiles": tiles, "concurrency": count, "answer_tokens": new}
            series = found[which]
            milliseconds = series.median_ms
            values = {"failure": series.failure} if milliseconds is None else {}
            if milliseconds is not None and which == "first":
                values["ttft_ms"] = milliseconds
            elif milliseconds is not None:
                values["images_per_s"] = 1e3 * rows / milliseconds
            self.figures.add(self.subject, "answers", size, TORCH, **values)

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
            rounds=self.sizes.rounds,
            synchronize=self.device.synchronize,
        )
        for name, series in found.items():
            self.figures.add_series(self.subject, stage, size, name, series, floor_ms=floors.get(name))

    def _tiles(self, count: int) -> Uint8:
        side = self.manifest.vision.tile_size
        return self.random.integers(0, 256, (count, 3, side, side), np.uint8)

    def _ids(self, count: int) -> Int32:
        return self.random.integers(0, self.manifest.decoder.vocab_size, count).astype(np.int32)


@contextmanager
def open_bed(
    subject: Subject,
    *,
    device: Device,
    sizes: Sizes,
    roof: Roofline,
    figures: Figures,
    work: Path,
    with_peer: bool,
) -> Iterator[Bed]:
    """Write the artifacts, open the sessions, build the peer; memory of every step goes to the figures."""
    before = device.used_bytes()
    directory = work / subject.title.replace(" ", "-")
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        manifest = write_artifacts(subject, directory)
        vision, decoder = _sessions(directory, manifest, device, sizes)
        opened = device.used_bytes()
        engine = stack.enter_context(
            engine_of(
                manifest,
                load_tokenizer(directory, manifest.tokenizer),
                vision,
                decoder,
                sizes=sizes,
                tiles_per_look=max(sizes.tiles),
            )
        )
        peer = _peer(subject, device) if with_peer else None
        bed = Bed(
            subject,
            device,
            sizes,
            roof,
            figures,
            manifest,
            Vitrail(vision, decoder),
            engine,
            Work(subject.config, manifest.artifacts["decoder.onnx.data"].size_bytes),
            peer,
        )
        yield bed
        after = device.used_bytes()
        peer_bytes = 0 if peer is None else peer.weight_bytes
        bed.drop()
        decoder.close()
    del vision, decoder, engine, peer
    device.release()
    figures.add_memory(
        subject,
        weights=sum(artifact.size_bytes for artifact in manifest.artifacts.values()),
        sessions=opened - before,
        after=after - before,
        peer_weights=peer_bytes,
        left=device.used_bytes() - before,
    )


def _sessions(directory: Path, manifest: Manifest, device: Device, sizes: Sizes) -> tuple[Any, OneThread]:
    vision = open_vision(directory, manifest, device.provider, tiles_per_run=max(sizes.tiles))
    cache = {"slots": sizes.slots, "capacity": sizes.context_tokens}
    return vision, OneThread(lambda: open_decoder(directory, manifest, device.provider, **cache))


def _peer(subject: Subject, device: Device) -> TorchPeer:
    dtype = torch.float16 if device.is_gpu else torch.float32
    return TorchPeer(subject.config, RandomWeights(subject.config), device=device.kind, dtype=dtype)
