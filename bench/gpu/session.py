"""A whole run: the roofline, then every model in order of how much its figures are wanted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import bench.gpu
from bench.gpu.bed import Bench
from bench.gpu.device import Device
from bench.gpu.figures import Figures
from bench.gpu.models import TINY, TINY_SIZES, Precision, Sizes, Subject
from bench.gpu.plan import Outcome, Run, reason
from bench.gpu.report import card_text, failures, of_vitrail
from bench.gpu.roofline import Roofline, measure_roofline
from bench.gpu.stages import groups_of

import vitrail
import vitrail_export
from vitrail.benchmark.device import device_fields
from vitrail.errors import OptionError, VitrailError
from vitrail.providers import parse_provider
from vitrail_export.published import PUBLISHED

__all__ = ["VitrailError", "Wanted", "card_text", "failed", "run"]

MODELS = ("internvl2-2b:fp16", "internvl3-8b:fp16", "internvl3-8b:int4", "internvl2-2b:int4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to measure.

    provider: as `vitrail.providers` reads it, None for the device's own; models: NAME:PRECISION, None for all; slots: rows of
    KV cache, None for 32; seconds: of the whole run; out: a directory; fresh: measure again what its file has; tests: how
    the GPU tests went before.
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
    fresh: bool
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
    heading = _heading(device, sizes, tiny=wanted.tiny)
    figures = Figures(wanted.out / f"{name}.json", heading, _run(wanted), fresh=wanted.fresh)
    roof = _roof(device, sizes, figures)
    bench = Bench(device, sizes, roof, figures, wanted.work)
    groups = groups_of(subjects, bench, compiled=wanted.compile, done=figures.is_done)
    Run(groups, budget_s=wanted.seconds, on_outcome=figures.note)()
    figures.write()
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


def _heading(device: Device, sizes: Sizes, *, tiny: bool) -> dict[str, Any]:
    """What figures of one file have in common."""
    fields = device_fields()
    return {
        "bench": "gpu",
        "tiny": tiny,
        "sizes": asdict(sizes),
        "device": {**device.fields(), **fields},
        "vitrail": fields["vitrail"],
        "commit": fields["commit"],
        "source": _source(),
    }


def _source() -> str:
    """A hash of the code that figures come from: a commit does not tell what was changed since."""
    digest = sha256()
    for package in (vitrail, vitrail_export, bench.gpu):
        for file in sorted(Path(package.__path__[0]).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _roof(device: Device, sizes: Sizes, figures: Figures) -> Roofline | None:
    """None where torch cannot measure it: vitrail's figures are then without it."""
    roof, failure = None, None
    try:
        roof = measure_roofline(device, sizes)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is torch's
        failure = reason(error)
    device.release()
    figures.run["roofline"] = roof.fields() if roof else {}
    figures.note(Outcome("roofline by torch", failure=failure))
    return roof


def _run(wanted: Wanted) -> dict[str, Any]:
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"started": started, "seconds": wanted.seconds, "tests": wanted.tests}
