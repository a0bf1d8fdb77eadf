"""What does a precision cost? The demo task answered by one checkpoint exported in several, sample by sample.

python bench/precisions.py                                # demo/checkpoint in every precision of PRECISIONS
python bench/precisions.py --limit 300 --only fp32 int4

Accuracy is that of `vitrail eval --task demo`; differences are paired with float32. The loss of the language model is
the mean cross entropy of the right answers' tokens, in nats: it shows what accuracy is too coarse for. What is fitted
to pictures is fitted to CALIBRATION of the kind that the checkpoint was trained on, none of which is asked about.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ending import ending

from vitrail.benchmark.device import device_fields
from vitrail.core import PromptOptions
from vitrail.manifest import load_manifest
from vitrail.prompt import render, turn_segments
from vitrail.providers import Cpu
from vitrail.session import Step
from vitrail.session.open import open_decoder, open_vision
from vitrail.splice import splice
from vitrail.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[1]
RESULTS, MODELS = ROOT / "bench" / "results", ROOT / "models" / "precisions"
LOSS_SAMPLES, CALIBRATION = 300, 32


class Precision(NamedTuple):
    """A row of the table, and the options of `vitrail export` that make it."""

    name: str
    options: tuple[str, ...]


STATIC = ("--vision-precision", "int8-static", "--calibration", "PICTURES")
PRECISIONS = (
    Precision("fp32", ("--precision", "fp32")),
    Precision("fp16", ("--precision", "fp16")),
    Precision("int8", ("--precision", "int8", "--vision-precision", "int8")),
    Precision("int4", ("--precision", "int4", "--vision-precision", "fp32")),
    Precision("w8a8", ("--precision", "w8a8", "--vision-precision", "fp32")),
    Precision("int4-int8", ("--precision", "int4", "--vision-precision", "int8")),
    Precision("w8a8-static", ("--precision", "w8a8", *STATIC)),
    Precision(
        "int4-w8a8-static", ("--precision", "int4", "--prefill", "w8a8", "--kv-cache", "int8", *STATIC)
    ),
)


@ending()
def main() -> None:
    arguments = _parser().parse_args()
    baseline, pictures = None, calibration(MODELS / "calibration")
    for at, precision in enumerate(PRECISIONS):
        # Everything is compared with the first.
        if at and precision.name not in arguments.only:
            continue
        directory = MODELS / precision.name
        # What an int8 encoder loses is below what the check lets pass: here it is measured instead.
        options = [str(pictures) if each == "PICTURES" else each for each in precision.options]
        vitrail("export", str(arguments.checkpoint), "--out", str(directory), "--no-check", *options)
        answers = directory.with_suffix(".jsonl")
        card = {
            "bench": "precision",
            "at": at,
            "precision": precision.name,
            "options": " ".join(precision.options),
            **device_fields(),
            **_size(directory),
            **_accuracy(directory, answers, limit=arguments.limit, name=precision.name),
            "loss": round(loss(directory, LOSS_SAMPLES), 4),
            "difference": _difference(baseline or answers, answers),
        }
        baseline = baseline or answers
        (RESULTS / f"precision-{at}-{precision.name}.json").write_text(json.dumps(card, indent=2) + "\n")
        print(json.dumps(card), flush=True)


def calibration(out: Path) -> Path:
    """Pictures of every skill as training draws them."""
    sys.path.append(str(ROOT))
    from demo.recipe.scene import Brush  # noqa: PLC0415
    from demo.recipe.scenes import MAKERS  # noqa: PLC0415

    out.mkdir(parents=True, exist_ok=True)
    skills = list(MAKERS.values())
    for seed in range(CALIBRATION):
        page = skills[seed % len(skills)](Brush(random.Random(seed))).pages[0]  # noqa: S311
        page.image.save(out / f"{seed:02}.png")
    return out


def loss(directory: Path, count: int) -> float:
    """Mean cross entropy of the right answers' tokens over `count` samples of the demo task, in nats."""
    sys.path.append(str(ROOT))
    from demo.recipe.evaluation import SKILLS, samples  # noqa: PLC0415

    manifest = load_manifest(directory)
    vision = open_vision(directory, manifest, Cpu())
    decoder = open_decoder(
        directory, manifest, Cpu(), slots=1, capacity=min(2048, manifest.decoder.context_tokens)
    )
    tokenizer, losses = load_tokenizer(directory, manifest.tokenizer), list[float]()
    for skill in SKILLS:
        for sample in samples(skill, count // len(SKILLS), seed=1):
            pictures = [{"type": "image", "image": image} for image in sample.images]
            content = [*pictures, {"type": "text", "text": sample.question}]
            prompt = render(
                [{"role": "user", "content": content}],
                contract=manifest.prompt,
                tile_size=manifest.vision.tile_size,
                tokens_per_tile=manifest.vision.tokens_per_tile,
                options=PromptOptions(),
            )
            asked = tokenizer.encode(prompt.segments, manifest.vision.tokens_per_tile)
            answer = tokenizer.encode(turn_segments(sample.answers[0], []), 0)
            ids = np.concatenate([asked, answer]).astype(np.int32)
            inputs = splice(
                decoder.embed(ids),
                ids,
                vision.project(vision.encode(prompt.tiles)),
                image_context_id=manifest.tokenizer.image_context_id,
            )
            positions = np.arange(len(asked) - 1, len(ids) - 1)
            step = Step(0, inputs[None], np.zeros(1, np.int32), positions)
            losses += (-log_softmax(decoder.forward(step))[np.arange(len(answer)), answer]).tolist()
    return float(np.mean(losses))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _accuracy(directory: Path, out: Path, *, limit: int, name: str) -> dict[str, Any]:
    out.unlink(missing_ok=True)
    options = ("--limit", str(limit), "--precision", name, "--out", str(out), "--json")
    found = json.loads(vitrail("eval", "--task", "demo", "--model", str(directory), *options))
    return {"limit": limit, **{name: found[name] for name in ("n", "score", "interval", "skills")}}


def _difference(first: Path, second: Path) -> dict[str, Any]:
    found = json.loads(vitrail("eval", "compare", str(first), str(second), "--json"))
    names = ("n", "first", "second", "difference", "interval", "wins", "losses", "p", "skills")
    return {name: found[name] for name in names}


def _size(directory: Path) -> dict[str, float]:
    artifacts = load_manifest(directory).artifacts.values()
    return {"artifacts_mib": round(sum(each.size_bytes for each in artifacts) / (1 << 20), 1)}


def vitrail(*arguments: str) -> str:
    return subprocess.run(
        [str(Path(sys.executable).with_name("vitrail")), *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "demo" / "checkpoint")
    parser.add_argument("--limit", type=int, default=2400, help="samples of the demo task")
    names = [each.name for each in PRECISIONS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    return parser


if __name__ == "__main__":
    main()
