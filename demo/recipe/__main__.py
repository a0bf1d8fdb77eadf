"""python -m demo.recipe all | train | resume | convert | curves: the demo checkpoint from nothing.

Every run goes on where the last one stopped. Stages 0 (`vision`) and 1 (`text`) need nothing from one another and may
run side by side; `text --eyes` goes on with what the vision tower sees; stage 2 (`joint`) starts from both and is no
part of `all`: at the rate that was tried it undid more than it taught.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
from pathlib import Path
from typing import NamedTuple

import torch

from demo.recipe import curriculum, curves, together, train_joint, train_text, train_vision
from demo.recipe.convert import convert, trained
from demo.recipe.grow import grow
from demo.recipe.loop import Stage, run
from demo.recipe.resume import resume_from
from demo.recipe.scene import Brush
from demo.recipe.scenes.pages import receipts

TRAINING, CHECKPOINT = Path("models/demo-training"), Path("demo/checkpoint")
CURVES, PICTURE = Path("demo/curves.png"), Path("demo/receipt.png")
SEEDS = {"vision": 1, "text": 2, "joint": 3}


class Part(NamedTuple):
    """A part of the whole recipe: a stage, its share of the time and of its learning rates, its largest pages, and the
    skills whose shares are others than the curriculum's.
    """

    stage: str
    time: float
    rate: float
    cooling: float
    most_tiles: int = 1
    eyes: bool = False
    shares: tuple[tuple[str, float], ...] = ()


# What counting takes is learned by little else, and hardly beside it.
COUNTING = (("shapes", 100.0), ("tables", 40.0))
WHOLE = (
    Part("vision", 0.05, 1.0, 0.0),
    Part("vision", 0.25, 0.5, 1.0),
    Part("text", 0.10, 0.5, 0.0),
    Part("text", 0.20, 0.5, 0.0, most_tiles=13),
    Part("text", 0.15, 0.2, 0.0, most_tiles=13),
    Part("text", 0.07, 0.3, 0.4, most_tiles=13, eyes=True, shares=COUNTING),
    Part("text", 0.18, 0.2, 0.9, most_tiles=13, eyes=True),
)


def main() -> None:
    arguments = _parser().parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.device != "cpu":  # where every tensor is then made
        torch.set_default_device(arguments.device)
    torch.manual_seed(0)
    together.join()
    arguments.run(arguments)


def train_whole(arguments: argparse.Namespace) -> None:
    for part in WHOLE:
        _train(arguments.directory, part, hours=arguments.hours * part.time)


def train_part(arguments: argparse.Namespace) -> None:
    if arguments.stage != "text" and (arguments.eyes or arguments.shares):
        raise SystemExit(f"error: --eyes and --shares are for stage text, and the stage is {arguments.stage}")
    if not any((curriculum.MIXED | dict(arguments.shares)).values()):
        raise SystemExit("error: --shares leaves nothing to draw; give one skill a weight above 0")
    part = Part(
        arguments.stage,
        1.0,
        arguments.rate,
        arguments.cooling,
        arguments.most_tiles,
        arguments.eyes,
        tuple(arguments.shares),
    )
    _train(arguments.directory, part, hours=arguments.hours)


def start_from_checkpoint(arguments: argparse.Namespace) -> None:
    try:
        resume_from(arguments.checkpoint, arguments.directory)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


def _train(directory: Path, part: Part, *, hours: float) -> None:
    seconds, signals = 3600 * hours, list[int]()
    signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    run(
        _stage(directory, part),
        directory,
        seconds=seconds,
        cooling_s=part.cooling * seconds,
        seed=SEEDS[part.stage],
        rate=part.rate,
        is_stopped=lambda: bool(signals),
    )


def _stage(directory: Path, part: Part) -> Stage:
    if part.stage == "vision":
        return train_vision.stage()
    if part.stage == "text":
        eyes = train_text.Eyes(directory / "vision.pt") if part.eyes else None
        shares = curriculum.MIXED | dict(part.shares)
        stage = train_text.stage(eyes=eyes, most_tiles=part.most_tiles, shares=shares)
        grow(stage, directory / "text.pt")
        return stage
    return train_joint.stage(directory, most_tiles=part.most_tiles)


def write_checkpoint(arguments: argparse.Namespace) -> None:
    convert(trained(arguments.directory), arguments.out)


def draw_curves(arguments: argparse.Namespace) -> None:
    logs = {name: arguments.directory / f"{name}.jsonl" for name in SEEDS}
    panels: list[tuple[str, curves.Series]] = [
        (
            "stage 0: share of characters found where they stand",
            curves.read_series(logs["vision"], ["found"]),
        ),
        ("stage 1: share of answer tokens predicted", curves.read_series(logs["text"])),
        ("stage 1: loss of answer tokens", curves.read_series(logs["text"], ["loss"])),
    ]
    if logs["joint"].is_file():
        panels.append(("stage 2: share of answer tokens predicted", curves.read_series(logs["joint"])))
        panels.append(("stage 2: loss of answer tokens", curves.read_series(logs["joint"], ["loss"])))
    curves.draw(panels, arguments.out)


def draw_picture(arguments: argparse.Namespace) -> None:
    """A receipt in a face and of goods that training never sees; its questions and answers go to stdout."""
    rng = random.Random(f"picture {arguments.seed}")  # noqa: S311
    scene = receipts(Brush(rng, which="held_out"), (3, 4))
    image = scene.pages[0].image
    assert image is not None
    image.save(arguments.out, optimize=True)
    for turn in scene.turns:
        print(json.dumps(turn[:2]))  # noqa: T201


def _hours(text: str) -> float:
    hours = float(text)
    if not hours > 0:
        raise argparse.ArgumentTypeError(f"{text} hours are no time to train; give more than 0")
    return hours


def _share(text: str) -> tuple[str, float]:
    skill, _, weight = text.partition("=")
    if skill not in curriculum.MIXED or not weight.replace(".", "", 1).isdigit():
        raise argparse.ArgumentTypeError(
            f"'{text}' is no share; give one of {', '.join(curriculum.MIXED)} as shapes=50"
        )
    return skill, float(weight)


def _device(name: str) -> str:
    if name not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"'{name}' is neither cpu nor cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(
            f"torch {torch.__version__} finds no CUDA device here; train on the cpu"
        )
    return name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m demo.recipe", description=__doc__)
    commands = parser.add_subparsers(required=True)
    whole = commands.add_parser("all", help="every stage, one after the other")
    whole.set_defaults(run=train_whole)
    part = commands.add_parser("train", help="one stage, or more of it")
    part.add_argument("stage", choices=list(SEEDS))
    part.add_argument("--rate", type=float, default=0.5, help="share of the stage's learning rates")
    part.add_argument("--cooling", type=float, default=0.0, help="share of the time in which they fall")
    part.add_argument("--most-tiles", type=int, default=13, help="of a page, thumbnail included")
    part.add_argument("--eyes", action="store_true", help="text only: from pictures, as vision.pt sees them")
    part.add_argument(
        "--shares",
        type=_share,
        nargs="+",
        default=(),
        metavar="SKILL=WEIGHT",
        help="text only: others than the curriculum's",
    )
    part.set_defaults(run=train_part)
    for each in (whole, part):
        each.add_argument("--hours", type=_hours, default=6.0, help="of wall-clock")
        each.add_argument("--device", type=_device, default="cpu", help="cpu or cuda")
    resuming = commands.add_parser("resume", help="begin from a written checkpoint, where the state is lost")
    resuming.add_argument("--from", type=Path, default=CHECKPOINT, dest="checkpoint")
    resuming.set_defaults(run=start_from_checkpoint)
    converting = commands.add_parser("convert", help="write the checkpoint")
    converting.add_argument("--out", type=Path, default=CHECKPOINT)
    converting.set_defaults(run=write_checkpoint)
    drawing = commands.add_parser("curves", help="draw the curves from the logs")
    drawing.add_argument("--out", type=Path, default=CURVES)
    drawing.set_defaults(run=draw_curves)
    picturing = commands.add_parser("picture", help="draw a receipt to ask about")
    picturing.add_argument("--seed", type=int, default=40)
    picturing.add_argument("--out", type=Path, default=PICTURE)
    picturing.set_defaults(run=draw_picture)
    parser.set_defaults(device="cpu")
    for each in (whole, part, resuming, converting, drawing, picturing):
        each.add_argument("--directory", type=Path, default=TRAINING, help="where the training state is kept")
        each.add_argument("--threads", type=int, default=1)
    return parser


if __name__ == "__main__":
    main()
