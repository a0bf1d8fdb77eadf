"""The command line: `vitrail export | verify | sensitivity | synthesize | plan | engine | repository | serve | ask | eval | bench | info`.

Answers and data go to stdout, everything else to stderr. Exit codes: 0 done, 1 unexpected, 2 wrong input,
3 artifacts or checkpoint, 4 export or parity, 5 server, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

from typing import Annotated

import typer

from vitrail.cli import ask, bench, engine, info, make, plan, repository, serve
from vitrail.cli import eval as evaluation

app = typer.Typer(
    name="vitrail",
    help="InternVL from checkpoint to streamed answers: export, serve on NVIDIA Triton, ask.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

app.command(epilog="Example: vitrail export ./InternVL2-2B --out artifacts --precision int4")(make.export)
app.command(epilog="Example: vitrail verify artifacts --against ./InternVL2-2B")(make.verify)
app.command(epilog="Example: vitrail synthesize internvl2-2b --out random-2b --layout hf")(make.synthesize)
app.command(epilog="Example: vitrail sensitivity ./InternVL2-2B --calibration pictures")(make.sensitivity)
app.command(epilog="Example: vitrail plan internvl2-2b --memory 8GiB --context 4096 --target jetson")(
    plan.plan
)
app.command(epilog="Example: vitrail engine artifacts --with tensorrt-rtx --targets sm_86,sm_89 --decoder")(
    engine.engine
)
app.command(epilog="Example: vitrail repository artifacts --out models --target tensorrt --gpu sm_90")(
    repository.repository
)
app.command(epilog="Example: vitrail serve artifacts --grpc-port 8001 --slots 8")(serve.serve)
app.command(epilog="Example: vitrail ask photo.jpg -q 'What is in this picture?'")(ask.ask)
app.add_typer(evaluation.app)
app.command(epilog="Example: vitrail bench --url localhost:8001 --concurrency 1,4 --tiles 1,7,13")(
    bench.bench
)
app.command(epilog="Example: vitrail info localhost:8001 --json")(info.info)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 (typer calls it so)
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415

        typer.echo(f"vitrail {version('vitrail')}")
        raise typer.Exit


@app.callback()
def _main(
    *,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """InternVL from checkpoint to streamed answers: export, serve on NVIDIA Triton, ask."""
