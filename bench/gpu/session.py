"""A whole run: the roofline, then every model in order of how much its figures are wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from bench.gpu.bed import Bed, Bench, open_bed
from bench.gpu.device import Device
from bench.gpu.figures import Figures
from bench.gpu.models import TINY, TINY_SIZES, Precision, Sizes, Subject
from bench.gpu.plan import Group, Run, Stage
from bench.gpu.report import card_text, failures, of_vitrail
from bench.gpu.roofline import measure_roofline

from vitrail.benchmark.device import device_fields
from vitrail.errors import OptionError, VitrailError
from vitrail.providers import parse_provider
from vitrail_export.published import PUBLISHED

__all__ = ["VitrailError", "Wanted", "card_text", "failed", "run"]

# The first group of a model also measures the peer: PyTorch is the same for all of our precisions.
MODELS = ("internvl2-2b:fp16", "internvl3-8b:fp16", "internvl3-8b:int4", "internvl2-2b:int4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to measure.

    provider: as `vitrail.providers` reads it, None for the device's own; models: NAME:PRECISION, None for all; slots: rows of
    KV cache, None for 32; seconds: of the whole run; out: a directory; tests: how the GPU tests went before.
    """

    device: str
    provider: str | None
    tiny: bool
    models: tuple[str, ...] | None
    slots: int | None
    seconds: float
    out: Path
    plot: bool
    compile: bool
    work: Path
    tests: dict[str, Any] | None = None


def run(wanted: Wanted) -> dict[str, Any]:
    """The card, which is also in the file. Raises OptionError for an unknown model."""
    subjects = [read_subject(text) for text in _models(wanted)]
    device = Device(wanted.device, parse_provider(wanted.provider or wanted.device))
    sizes = TINY_SIZES if wanted.tiny else Sizes()
    sizes = sizes.within(wanted.slots) if wanted.slots else sizes
    wanted.out.mkdir(parents=True, exist_ok=True)
    name = f"{device.slug}-tiny" if wanted.tiny else device.slug
    figures = Figures(wanted.out / f"{name}.json", _heading(device, wanted))
    roof = measure_roofline(device, sizes)
    device.release()
    figures.card["roofline"] = roof.fields()
    bench = Bench(device, sizes, roof, figures, wanted.work)
    groups = [
        _group(subject, bench, with_peer=first, compiled=wanted.compile)
        for subject, first in _with_first(subjects)
    ]
    Run(groups, budget_s=wanted.seconds, on_outcome=figures.note)()
    if wanted.plot and find_spec("matplotlib"):
        from bench.gpu.plot import write_plot  # noqa: PLC0415

        write_plot(wanted.out / f"{name}.png", figures.card)
    return figures.card


def failed(card: dict[str, Any]) -> bool:
    """Whether any stage of vitrail itself broke off."""
    return any(map(of_vitrail, failures(card)))


def read_subject(text: str) -> Subject:
    name, _, precision = text.partition(":")
    if name not in (TINY, *PUBLISHED) or precision not in get_args(Precision):
        known = f"{', '.join((TINY, *PUBLISHED))}, each with :{' or :'.join(get_args(Precision))}"
        raise OptionError(f"'{text}' cannot be measured; choose of {known}")
    return Subject(name, precision)  # type: ignore[arg-type]


def _models(wanted: Wanted) -> tuple[str, ...]:
    return wanted.models or ((f"{TINY}:fp16", f"{TINY}:int4") if wanted.tiny else MODELS)


def _with_first(subjects: list[Subject]) -> list[tuple[Subject, bool]]:
    names = [subject.name for subject in subjects]
    return [(subject, names.index(subject.name) == at) for at, subject in enumerate(subjects)]


def _heading(device: Device, wanted: Wanted) -> dict[str, Any]:
    fields = device_fields()
    return {
        "bench": "gpu",
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "tiny": wanted.tiny,
        "tests": wanted.tests,
        "device": {**device.fields(), **fields},
        "vitrail": fields["vitrail"],
        "commit": fields["commit"],
        "roofline": {},
    }


def _group(subject: Subject, bench: Bench, *, with_peer: bool, compiled: bool) -> Group[Bed]:
    opened = partial(open_bed, subject, bench, with_peer=with_peer)
    large = 2.0 if "8b" in subject.name else 1.0
    stages = _stages(bench.sizes, large)
    if with_peer:
        stages += _peer_stages(bench.sizes, large, compiled=compiled and bench.device.is_gpu)
    return Group(subject.title, open_seconds=15 * large, open=opened, stages=tuple(stages))


def _stages(sizes: Sizes, large: float) -> list[Stage[Bed]]:
    """Most wanted first: the first size of everything is essential, and comes before every other. large: how much
    longer than a 2B model's they take.
    """
    alone = [(tiles, 1) for tiles in sizes.picture_tiles]
    busiest = [(tiles, sizes.concurrency[0]) for tiles in sizes.picture_tiles if sizes.concurrency[0] > 1]
    between = [(tiles, many) for tiles in sizes.picture_tiles for many in sizes.concurrency[1:-1]]
    kinds: list[tuple[str, float, Sequence[Any], Callable[[Bed, Any], None], int]] = [
        ("parity", 2, (64,), Bed.parity, 1),
        ("vision", 3, sizes.tiles, Bed.vision, 1),
        ("decode", 6, sizes.batches, Bed.decode, 1),
        ("answers", 6, alone, Bed.answers, 1),
        ("prefill", 2, sizes.prefill, Bed.prefill, 1),
        ("answers", 8, busiest, Bed.answers, len(busiest)),
        ("answers", 5, between, Bed.answers, 0),
    ]
    found = [
        Stage(f"{kind} {value}", large * seconds, partial(_measure, measure, value), essential=at < essential)
        for kind, seconds, values, measure, essential in kinds
        for at, value in enumerate(values)
    ]
    return sorted(found, key=lambda stage: not stage.essential)


def _peer_stages(sizes: Sizes, large: float, *, compiled: bool) -> list[Stage[Bed]]:
    batches = zip(sizes.picture_tiles, sizes.peer_batches, strict=True)
    found = [
        Stage(f"answers of torch {each}", 8 * large, partial(_measure, Bed.peer_answers, each))
        for each in batches
    ]
    return [*found, Stage("torch compiled", 60, Bed.compiled)] if compiled else found


def _measure(measure: Callable[[Bed, Any], None], value: Any, bed: Bed) -> None:
    measure(bed, value)
