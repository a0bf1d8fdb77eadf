"""`vitrail eval`: how well a model answers, and `vitrail eval compare`: whether another answers better."""

from __future__ import annotations

import hashlib
import json
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vitrail.cli.terminal import PROVIDER_HELP, command, hush_grpc, stderr
from vitrail.errors import InvalidInput, OptionError
from vitrail.evaluation import report
from vitrail.evaluation.compare import compare as compare_runs
from vitrail.evaluation.results import ResultsWriter, Run
from vitrail.evaluation.run import Answerer, Asking, evaluate
from vitrail.evaluation.summary import summarize
from vitrail.evaluation.tasks import TASKS, find_task
from vitrail.evaluation.tasks.task import Source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from vitrail.evaluation.sample import Record
    from vitrail.evaluation.tasks.task import Plan, Task

# A request that was not begun is sent again so often, with pauses of 8 s in all: a supervisor restarts a server.
RETRIES = 5
TERMINATED = 143

app = typer.Typer(
    name="eval",
    epilog="Example: vitrail eval --task demo --model artifacts --out fp32.jsonl",
    invoke_without_command=True,
    rich_markup_mode=None,
)


class Model(NamedTuple):
    """Who answers, and a name that tells its weights apart."""

    answer: Answerer
    name: str


@app.callback()
@command(extra="runtime")
def evaluate_task(
    *,
    context: typer.Context,
    task: Annotated[str | None, typer.Option(help=f"One of {', '.join(TASKS)}.")] = None,
    data: Annotated[Path | None, typer.Option(help="Directory with the benchmark's files.")] = None,
    images: Annotated[Path | None, typer.Option(help="Directory of its pictures. [default: --data]")] = None,
    split: Annotated[str | None, typer.Option(help="Of the benchmark; each task has its default.")] = None,
    model: Annotated[Path | None, typer.Option(help="Run these artifacts here.")] = None,
    provider: Annotated[str | None, typer.Option(help=f"With --model. {PROVIDER_HELP}")] = None,
    url: Annotated[str | None, typer.Option(help="Ask the server at this gRPC address.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask so many samples only.")] = None,
    seed: Annotated[int, typer.Option(help="Of rendered pictures, and of which samples a limit leaves.")] = 0,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Samples asked at once.")] = 4,
    max_tiles: Annotated[int | None, typer.Option(help="Tiles per picture. [default: the task's]")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer. [default: the task's]")] = None,
    prompt: Annotated[str | None, typer.Option(help="With {question}. [default: the authors']")] = None,
    precision: Annotated[str | None, typer.Option(help="A label for reports, such as int4.")] = None,
    out: Annotated[Path | None, typer.Option(help="Results file, JSON lines.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the results file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Only the JSON line on stdout.")] = False,
) -> None:
    """Measure a model's accuracy on a task. A table and one JSON line go to stdout, every sample to the results file."""
    if context.invoked_subcommand is not None:
        return
    if task is None or out is None:
        raise OptionError(f"give --task ({', '.join(TASKS)}) and --out RESULTS.jsonl")
    if (model is None) == (url is None):
        raise OptionError("give either --model DIR or --url HOST:PORT")
    if model is None and provider is not None:
        raise OptionError(f"--provider {provider} is for --model; a server's is set by `vitrail serve`")
    chosen = find_task(task)
    asking = Asking(
        prompt=chosen.prompt if prompt is None else prompt,
        max_tiles=chosen.max_tiles if max_tiles is None else max_tiles,
        max_tokens=chosen.max_tokens if max_tokens is None else max_tokens,
    )
    source = Source(data=data, images=images, split=split, seed=seed, limit=limit)
    plan = chosen.plan(source)
    signal.signal(signal.SIGTERM, _terminate)
    with (
        _server(str(url)) if model is None else _engine(model, slots=concurrency, provider=provider or "cpu")
    ) as answering:
        run = _run(chosen, source, plan, asking, model=answering.name, precision=precision)
        records = _ask_all(
            plan, run, out, answer=answering.answer, asking=asking, concurrency=concurrency, resume=resume
        )
    _report(run, records, as_json=as_json)


@app.command(epilog="Example: vitrail eval compare fp32.jsonl int4.jsonl")
@command(extra="runtime")
def compare(
    *,
    first: Annotated[Path, typer.Argument(metavar="A", help="Results of one run.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Results of another run of the same samples.")],
    as_json: Annotated[bool, typer.Option("--json", help="Only the JSON line on stdout.")] = False,
) -> None:
    """Compare two runs of the same samples, pair by pair: B minus A, with intervals and McNemar's exact test."""
    comparison = compare_runs(first, second)
    if not as_json:
        typer.echo("\n".join(report.comparison_lines(comparison)))
    typer.echo(json.dumps(report.comparison_fields(comparison), ensure_ascii=False))


def _run(task: Task, source: Source, plan: Plan, asking: Asking, *, model: str, precision: str | None) -> Run:
    return Run(
        task=task.name,
        split=task.split(source.split),
        seed=source.seed,
        data=plan.fingerprint,
        model=model,
        precision=precision,
        prompt=asking.prompt,
        max_tiles=asking.max_tiles,
        max_tokens=asking.max_tokens,
        planned=plan.total,
    )


def _ask_all(
    plan: Plan, run: Run, out: Path, *, answer: Answerer, asking: Asking, concurrency: int, resume: bool
) -> list[Record]:
    """Ask what is not in the file yet; all records, old and new. Whatever happens, what was answered is in the file."""
    with ResultsWriter.start(out, run, resume=resume) as writer, _progress(plan.total) as progress:
        records = list(writer.records)
        known = {record.id for record in records}
        progress.show(records)
        try:
            fresh = (entry for entry in plan.entries if entry.id not in known)
            for record in evaluate(fresh, answer=answer, asking=asking, concurrency=concurrency):
                writer.add(record)
                records.append(record)
                progress.show(records[-1:])
        except BaseException:
            stderr.print(f"{len(records)} of {plan.total} samples are in {out}; go on with --resume")
            raise
    return records


def _report(run: Run, records: list[Record], *, as_json: bool) -> None:
    """Raises InvalidInput where no sample was answered: that is no result."""
    for line in report.unusable_lines(records):
        stderr.print(line)
    summary = summarize(records)
    if not any(record.status == "scored" for record in records):
        raise InvalidInput(f"none of {len(records)} samples was answered; see the reasons above")
    if not as_json:
        typer.echo("\n".join(report.summary_lines(run, summary)))
    typer.echo(json.dumps(report.summary_fields(run, summary), ensure_ascii=False))


class _Shown:
    """The bar: samples done, and the score of those that count."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._bar = progress.add_task("", total=total)
        self._sum, self._n = 0.0, 0

    def show(self, records: list[Record]) -> None:
        scores = [record.score for record in records if record.score is not None]
        self._sum, self._n = self._sum + sum(scores), self._n + len(scores)
        score = f"score {100 * self._sum / self._n:.1f}" if self._n else ""
        self._progress.update(self._bar, advance=len(records), description=score)


@contextmanager
def _progress(total: int) -> Iterator[_Shown]:
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr) as progress:
        yield _Shown(progress, total)


@contextmanager
def _engine(directory: Path, *, slots: int, provider: str) -> Iterator[Model]:
    from vitrail.engine import Engine  # noqa: PLC0415

    with stderr.status(f"loading {directory}"):
        engine = Engine.load(directory, slots=slots, provider=provider)
    with engine:
        weights = {name: file.sha256 for name, file in engine.manifest.artifacts.items()}
        yield Model(engine.chat, f"{engine.manifest.name} {_digest(weights)}")


@contextmanager
def _server(url: str) -> Iterator[Model]:
    """A server that is not there is told at once; one that goes away later gets time to come back."""
    hush_grpc()
    from vitrail.client import Client  # noqa: PLC0415

    with Client(url, retries=0) as probe:
        contract = probe.info()
    # Limits may differ between two servers of one model.
    told = contract.model_dump(exclude={"slots", "queue_limit", "max_request_tiles", "server"})
    with Client(url, retries=RETRIES) as client:
        yield Model(client.chat, f"{contract.name} {_digest(told)}")


def _digest(fields: object) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _terminate(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM leaves by the same way as Ctrl-C: what was answered is kept."""
    raise SystemExit(TERMINATED)
