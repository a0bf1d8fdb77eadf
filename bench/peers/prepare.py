"""One checkpoint for all: synthesized, exported by vitrail, and its language model as a checkpoint of its own."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from bench.peers.contest import EXPORTS
from bench.peers.install import run
from PIL import Image

from vitrail.core import Uint8

VITRAIL = str(Path(sys.executable).with_name("vitrail"))
PREFIX = "language_model."
EXPORT_S = 3600.0
TILES, PICTURES, CALIBRATION_TILES = 7, 4, 32
PROMPT_TOKENS, CHECKS, CHECK_TOKENS = 2048, 16, 48
COPY_BYTES = 64 << 20


def prepare(work: Path, model: str, *, layers: int | None, exports: Iterable[str]) -> None:
    """Everything of `work` that is missing, but only these exports. Raises WorkerError where a command fails."""
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / "checkpoint"
    if not (checkpoint / "config.json").exists():
        command = [VITRAIL, "synthesize", model, "--layout", "hf", "--out", str(checkpoint)]
        run(command + (["--layers", str(layers)] if layers else []), timeout_s=EXPORT_S)
    if not (work / "language" / "config.json").exists():
        write_language(checkpoint, work / "language")
    write_inputs(work, json.loads((checkpoint / "config.json").read_text(encoding="utf-8")))
    for name in exports:
        if not (work / name / "manifest.json").exists():
            print(f"exporting {name}", file=sys.stderr)
            options = [each.format(pictures=work / "pictures") for each in EXPORTS[name]]
            command = [VITRAIL, "export", str(checkpoint), "--out", str(work / name), "--no-check"]
            run([*command, *options], timeout_s=EXPORT_S)


def write_language(checkpoint: Path, out: Path) -> None:
    """The language model alone, which is a Llama in this layout, with the tokenizer. Without dynamic rope, which starts
    beyond what is measured and which not every peer knows.
    """
    out.mkdir(parents=True, exist_ok=True)
    for file in checkpoint.glob("*token*"):
        shutil.copy(file, out)
    copy_tensors(checkpoint / "model.safetensors", out / "model.safetensors", prefix=PREFIX)
    fields = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["text_config"]
    fields.pop("rope_scaling", None)
    text = json.dumps({**fields, "torch_dtype": "bfloat16", "bos_token_id": 1}, indent=2)
    (out / "config.json").write_text(text + "\n", encoding="utf-8")


def copy_tensors(source: Path, target: Path, *, prefix: str) -> None:
    """The tensors of a safetensors file whose names begin with `prefix`, without it."""
    with source.open("rb") as file, target.open("wb") as out:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
        wanted = {name: entry for name, entry in header.items() if name.startswith(prefix)}
        found, end = {}, 0
        for name, entry in wanted.items():
            begin, end = end, end + entry["data_offsets"][1] - entry["data_offsets"][0]
            found[name.removeprefix(prefix)] = {**entry, "data_offsets": [begin, end]}
        text = json.dumps(found, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        out.write(len(text).to_bytes(8, "little") + text)
        for entry in wanted.values():
            begin, stop = entry["data_offsets"]
            for at in range(begin, stop, COPY_BYTES):
                file.seek(8 + length + at)
                out.write(file.read(min(COPY_BYTES, stop - at)))


def write_inputs(work: Path, config: dict[str, Any]) -> None:
    """What every contestant is given, so that what they make of it can be compared; pictures to calibrate with."""
    random, side = np.random.default_rng(0), config["vision_config"]["image_size"]
    vocabulary = config["text_config"]["vocab_size"]
    np.savez(
        work / "inputs.npz",
        tiles=tiles(range(TILES), side),
        calibration=tiles(range(100, 100 + CALIBRATION_TILES), side),
        prompt=random.integers(3, vocabulary, PROMPT_TOKENS).astype(np.int32),
        checks=random.integers(3, vocabulary, (CHECKS, CHECK_TOKENS)).astype(np.int32),
    )
    (work / "pictures").mkdir(exist_ok=True)
    for seed in range(TILES, TILES + PICTURES):
        picture(seed, side).save(work / "pictures" / f"{seed}.png")


def tiles(seeds: Iterable[int], side: int) -> Uint8:
    """[n, 3, side, side]."""
    return np.stack([np.asarray(picture(seed, side)).transpose(2, 0, 1) for seed in seeds])


def picture(seed: int, side: int) -> Image.Image:
    """Soft coloured spots."""
    spots = np.random.default_rng(seed).integers(0, 256, (side // 32, side // 32, 3), np.uint8)
    return Image.fromarray(spots).resize((side, side), Image.Resampling.BICUBIC)
