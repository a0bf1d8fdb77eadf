"""`vitrail bench`: how fast a server, or artifacts in this process, answers under load."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from vitrail.cli.ask import DEFAULT_URL
from vitrail.cli.terminal import INTERRUPTED, PROVIDER_HELP, command, hush_grpc, stderr
from vitrail.errors import OptionError, VitrailError

if TYPE_CHECKING:
    from vitrail.benchmark.load import Load, Tally
    from vitrail.benchmark.report import Objective
    from vitrail.benchmark.target import Target
    from vitrail.benchmark.workload import Workload

DEFAULT_REQUESTS = 32
LATEST = 256


@command(extra="bench,runtime")
def bench(
    *,
    url: Annotated[
        str | None,
        typer.Option(help=f"The server's gRPC address. [default: {DEFAULT_URL}]", show_default=False),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Run these artifacts here instead of asking a server.")
    ] = None,
    route: Annotated[str, typer.Option(help="auto, ensemble or direct (see docs).")] = "auto",
    concurrency: Annotated[
        str | None,
        typer.Option(help="Closed loop: requests at once, several for a sweep. [default: 1,2,4,8]"),
    ] = None,
    rate: Annotated[
        str | None, typer.Option(help="Open loop: Poisson arrivals per second, several for a sweep.")
    ] = None,
    requests: Annotated[
        int | None, typer.Option(help=f"Of each stage. [default: {DEFAULT_REQUESTS}]")
    ] = None,
    duration: Annotated[float | None, typer.Option(help="Seconds of each stage, instead.")] = None,
    warmup: Annotated[
        int | None,
        typer.Option(help="Unmeasured requests before each stage. [default: one for each at once]"),
    ] = None,
    tiles: Annotated[
        str | None, typer.Option(help="Tiles of the pictures, thumbnail included; 0 for none. [default: 7]")
    ] = None,
    image_size: Annotated[str | None, typer.Option(help="Or their pixels: 896x448,1024x768.")] = None,
    words: Annotated[int, typer.Option(help="Of each question.")] = 16,
    output_tokens: Annotated[int, typer.Option(help="Of each answer.")] = 32,
    ignore_eos: Annotated[bool, typer.Option(help="Write exactly so many tokens.")] = True,
    repeat_share: Annotated[float, typer.Option(help="Questions about a picture that was shown before.")] = 0,
    turns: Annotated[float, typer.Option(help="Share of questions that continue a conversation.")] = 0,
    streams: Annotated[
        int, typer.Option(help="Answers without picture that are being written beside the load.")
    ] = 0,
    stream_tokens: Annotated[int, typer.Option(help="Of each such answer.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the workload and the arrivals.")] = 0,
    slo_ttft_ms: Annotated[float | None, typer.Option(help="Objective: time to first token.")] = None,
    slo_tpot_ms: Annotated[float | None, typer.Option(help="Objective: time per output token.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds after which a request has failed.")] = 120.0,
    max_in_flight: Annotated[int, typer.Option(help="Requests at once in the open loop; more wait.")] = 128,
    slots: Annotated[int | None, typer.Option(help="Answers written at once, with --model.")] = None,
    tpot_slowdown: Annotated[
        float | None,
        typer.Option(help="With --model: what prompts may cost answers, as for `vitrail serve`."),
    ] = None,
    provider: Annotated[str | None, typer.Option(help=f"With --model. {PROVIDER_HELP}")] = None,
    shared_memory: Annotated[
        bool, typer.Option("--shared-memory", help="Hand tiles to a server on this machine in /dev/shm.")
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="What reports call the model. [default: its export's name]")
    ] = None,
    max_error_share: Annotated[float, typer.Option(help="Failed requests that still count as success.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write FILE.json, FILE.csv and FILE.requests.csv.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Directory for PNG figures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Measure latency and throughput under load, with a seeded workload. Failed requests are counted."""
    from vitrail.benchmark.report import Objective  # noqa: PLC0415
    from vitrail.benchmark.workload import Workload  # noqa: PLC0415

    for_model = {"slots": slots, "tpot_slowdown": tpot_slowdown, "provider": provider}
    for_server = {"timeout_s": timeout, "route": route, "shared_memory": shared_memory}
    target = _target(url, model, for_model=for_model, for_server=for_server)
    if not 0 < timeout < 1e6:
        raise OptionError(f"--timeout is {timeout:g}; give seconds above 0")
    workload = Workload(
        **_pictures(tiles, image_size),
        prompt_words=words,
        output_tokens=output_tokens,
        ignore_eos=ignore_eos,
        repeat_share=repeat_share,
        turn_share=turns,
        seed=seed,
        streams=streams,
        stream_tokens=stream_tokens,
    )
    loads = _loads(
        concurrency,
        rate,
        requests=requests,
        duration_s=duration,
        warmup=warmup,
        max_in_flight=max_in_flight,
    )
    _check_outputs(out, plots)
    run = Run(workload, loads, Objective(slo_ttft_ms, slo_tpot_ms), timeout_s=timeout, name=name)
    run.execute(target)
    card = run.card()
    _write(card, run.tallies, out=out, plots=plots)
    _print(card, as_json=as_json)
    if code := run.exit_code(max_error_share):
        raise typer.Exit(code)


@dataclass
class Run:
    """One benchmark: what it is asked to do and what came of it."""

    workload: Workload
    loads: list[Load]
    objective: Objective
    timeout_s: float
    name: str | None = None
    tallies: list[Tally] = field(default_factory=list)
    target_fields: dict[str, Any] = field(default_factory=dict)
    failure: VitrailError | None = None
    started: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    def execute(self, opening: AbstractContextManager[Target]) -> None:
        """Sweep. A target that cannot be reached or loaded is a failure to report like others."""
        from vitrail.benchmark.sweep import run_sweep  # noqa: PLC0415

        try:
            with opening as target, _progress() as on_tick:
                self.target_fields = target.fields | ({"name": self.name} if self.name else {})
                self.tallies = run_sweep(
                    target, self.workload, self.loads, timeout_s=self.timeout_s, on_tick=on_tick
                )
        except OptionError:
            raise
        except VitrailError as error:
            self.failure = error

    def card(self) -> dict[str, Any]:
        """Everything, as plain values: device, versions, target, workload, stages."""
        from vitrail.benchmark.device import device_fields  # noqa: PLC0415
        from vitrail.benchmark.report import stage_fields  # noqa: PLC0415

        return {
            "bench": "serve",
            "started": self.started,
            **device_fields(),
            "target": self.target_fields,
            "workload": asdict(self.workload),
            "timeout_s": self.timeout_s,
            "objective": self.objective._asdict(),
            "failure": str(self.failure) if self.failure else None,
            "stages": [stage_fields(tally, self.objective) for tally in self.tallies],
        }

    def exit_code(self, max_error_share: float) -> int:
        """0; 130 after Ctrl-C; that of the most frequent failure where more failed than may."""
        if self.failure is not None:
            return self.failure.exit_code
        if any(tally.ending == "interrupted" for tally in self.tallies):
            return INTERRUPTED
        failures = [failure for tally in self.tallies for failure in tally.failures]
        asked = sum(len(tally.samples) for tally in self.tallies)
        if len(failures) <= max_error_share * asked and asked:
            return 0
        codes = [failure.exit_code for failure in failures]
        return max(set(codes), key=codes.count) if codes else 1


def _target(
    url: str | None, model: Path | None, *, for_model: dict[str, Any], for_server: dict[str, Any]
) -> AbstractContextManager[Target]:
    """Who is to answer. Raises OptionError where both are named, or a server is given what is for artifacts here."""
    from vitrail.benchmark.target import artifacts, server  # noqa: PLC0415

    if url is not None and model is not None:
        raise OptionError("--url and --model exclude each other; give one")
    if model is not None:
        return artifacts(model, **{name: value for name, value in for_model.items() if value is not None})
    for name in ("provider", "tpot_slowdown"):
        if (value := for_model[name]) is not None:
            option = name.replace("_", "-")
            raise OptionError(f"--{option} {value} is for --model; a server's is set by `vitrail serve`")
    hush_grpc()
    return server(url or DEFAULT_URL, **for_server)


def _pictures(tiles: str | None, image_size: str | None) -> dict[str, Any]:
    """The fields of a Workload that tell its pictures."""
    if tiles is not None and image_size is not None:
        raise OptionError("--tiles and --image-size exclude each other; give one")
    if image_size:
        return {"tiles": (), "image_sizes": _sizes(image_size)}
    return {"tiles": _numbers(tiles or "7", int, "--tiles")}


def _loads(concurrency: str | None, rate: str | None, *, warmup: int | None, **limits: Any) -> list[Load]:
    from vitrail.benchmark.load import WARMUP_WORKERS, Load  # noqa: PLC0415

    if concurrency is not None and rate is not None:
        raise OptionError("--concurrency (closed loop) and --rate (open loop) exclude each other; give one")
    if limits["requests"] is None and limits["duration_s"] is None:
        limits["requests"] = DEFAULT_REQUESTS
    if rate is not None:
        rates = _numbers(rate, float, "--rate")
        return [
            Load(rate=value, warmup=WARMUP_WORKERS if warmup is None else warmup, **limits) for value in rates
        ]
    counts = _numbers(concurrency or "1,2,4,8", int, "--concurrency")
    return [Load(concurrency=count, warmup=count if warmup is None else warmup, **limits) for count in counts]


def _numbers(text: str, kind: Callable[[str], Any], option: str) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"{option} is '{text}'; give numbers separated by commas") from None


def _sizes(text: str) -> tuple[tuple[int, int], ...]:
    parts = [part.partition("x") for part in text.lower().split(",")]
    try:
        return tuple((int(width), int(height)) for width, _, height in parts)
    except ValueError:
        raise OptionError(
            f"--image-size is '{text}'; give WIDTHxHEIGHT, several separated by commas"
        ) from None


def _check_outputs(out: Path | None, plots: Path | None) -> None:
    """Find out now, not after the measurement, that its results cannot be kept."""
    if plots is not None:
        if find_spec("matplotlib") is None:
            raise ModuleNotFoundError(name="matplotlib")
        plots.mkdir(parents=True, exist_ok=True)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        _beside(out, ".json").touch()


def _beside(out: Path, suffix: str) -> Path:
    """FILE or FILE.json as FILE with another ending."""
    return out.with_name(out.name.removesuffix(".json") + suffix)


@contextmanager
def _progress() -> Iterator[Callable[[str, Tally], None]]:
    """A live line on stderr, where that is a terminal. SIGTERM then ends the run as Ctrl-C does, with its report."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with stderr.status("drawing pictures") as status:
            yield lambda title, tally: status.update(progress_line(title, tally))
    finally:
        signal.signal(signal.SIGTERM, previous)


def progress_line(title: str, tally: Tally) -> str:
    """A stage so far, in words; speeds are of its latest requests, so that the line costs no more as they add up."""
    done = len(tally.samples) - tally.failed.total()
    parts = [f"{title}: {done}{f'/{tally.load.requests}' if tally.load.requests else ''} answered"]
    latest = [sample for sample in tally.samples[-LATEST:] if sample.failure is None]
    if latest:
        spent_s = max(sample.ended_s for sample in latest) - min(sample.due_s for sample in latest)
        tokens_per_s = sum(sample.tokens for sample in latest) / max(spent_s, 1e-9)
        ttft_ms = median(sample.ttft_ms or 0.0 for sample in latest)
        parts += [f"{tokens_per_s:.1f} tokens/s", f"TTFT p50 {ttft_ms:.0f} ms"]
    parts += [f"{number} {code}" for code, number in tally.errors.items()]
    return ", ".join(parts)


def _write(card: dict[str, Any], tallies: list[Tally], *, out: Path | None, plots: Path | None) -> None:
    from vitrail.benchmark.report import request_rows, summary_rows, write_csv  # noqa: PLC0415

    if out is not None:
        _beside(out, ".json").write_text(json.dumps(card) + "\n", encoding="utf-8")
        write_csv(_beside(out, ".csv"), summary_rows(card["stages"]))
        write_csv(_beside(out, ".requests.csv"), request_rows(tallies))
    if plots is not None:
        from vitrail.benchmark.plot import write_plots  # noqa: PLC0415

        for path in write_plots(plots, card):
            stderr.print(f"wrote {path}")


def _print(card: dict[str, Any], *, as_json: bool) -> None:
    """Tables on stdout; with --json one line there, and the tables on stderr."""
    from vitrail.benchmark.report import stage_table, sweep_table  # noqa: PLC0415

    console = stderr if as_json else Console(highlight=False, markup=False, emoji=False)
    for fields in card["stages"]:
        console.print(stage_table(fields))
    if len(card["stages"]) > 1:
        console.print(sweep_table(card["stages"]))
    for fields in card["stages"]:
        for code, message in fields["error_examples"].items():
            stderr.print(f"{fields['errors'][code]} failed ({code}), one of them: {message}")
    if card["failure"]:
        stderr.print(f"error: {card['failure']}")
    if as_json:
        typer.echo(json.dumps(card, ensure_ascii=False))
