"""`vitrail engine`: TensorRT engines from an export."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from vitrail.cli.terminal import command, stderr
from vitrail.manifest import EngineBuilder, EnginePrecision, EngineRecord, load_manifest

NO_PICTURES = (
    "no --pictures were given: graphs are compared with float32 on drawn pictures alone; "
    "name some that are like those to be asked about"
)


class BuilderName(str, Enum):
    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"

    @property
    def builder(self) -> EngineBuilder:
        return "tensorrt" if self is BuilderName.tensorrt else "tensorrt-rtx"


class EnginePrecisionName(str, Enum):
    fp16 = "fp16"
    bf16 = "bf16"
    fp8 = "fp8"
    int8 = "int8"

    @property
    def precision(self) -> EnginePrecision:
        return self.value


@command(extra="export")
def engine(
    *,
    artifacts: Annotated[Path, typer.Argument(help="Directory that `vitrail export` wrote.")],
    builder: Annotated[
        BuilderName,
        typer.Option("--with", help="tensorrt builds on the GPU it is for, tensorrt-rtx also without one."),
    ] = BuilderName.tensorrt_rtx,
    targets: Annotated[
        str | None,
        typer.Option(
            help="Compute capabilities, such as sm_86,sm_89, or current for this GPU.  "
            "[default: sm_86,sm_89,sm_120 with tensorrt-rtx, current with tensorrt]"
        ),
    ] = None,
    max_tiles: Annotated[int, typer.Option(help="The most tiles in one run of the vision encoder.")] = 13,
    precision: Annotated[
        EnginePrecisionName, typer.Option(help="Of the vision encoder; fp8 and int8 need --pictures.")
    ] = EnginePrecisionName.fp16,
    decoder: Annotated[bool, typer.Option("--decoder", help="Build the language model, too.")] = False,
    slots: Annotated[int, typer.Option(help="Of the decoder: answers that are written at once.")] = 4,
    context: Annotated[
        int | None,
        typer.Option(help="Of the decoder: tokens of each slot.  [default: 8192, or the model's limit]"),
    ] = None,
    prefill_chunk: Annotated[
        int, typer.Option(help="Of the decoder: the most prompt tokens in one step.")
    ] = 512,
    checkpoint: Annotated[
        str | None, typer.Option(help="Make the graphs from this; for an export that TensorRT cannot take.")
    ] = None,
    pictures: Annotated[
        list[Path] | None,
        typer.Option(help="Files or folders to compare and calibrate on; may be given several times."),
    ] = None,
) -> None:
    """Build TensorRT engines of an export and record them in its manifest."""
    from vitrail_export.engine.build import build_engines  # noqa: PLC0415
    from vitrail_export.engine.options import EngineOptions  # noqa: PLC0415

    options = EngineOptions(
        builder=builder.builder,
        targets=tuple(each.strip() for each in targets.split(",")) if targets is not None else (),
        max_tiles=max_tiles,
        precision=precision.precision,
        decoder=decoder,
        slots=slots,
        context_tokens=context,
        prefill_chunk=prefill_chunk,
        checkpoint=checkpoint,
        pictures=tuple(pictures or ()),
    )
    if not pictures:
        stderr.print(NO_PICTURES)
    with _stage_progress() as report:
        built = build_engines(artifacts, options, report=report)
    sizes = {name: each.size_bytes for name, each in load_manifest(artifacts).artifacts.items()}
    for record in built:
        stderr.print(_line(record, sizes[record.artifact]))


def _line(record: EngineRecord, size_bytes: int) -> str:
    checked = f"cosine {record.parity.cosine:.6f}" if record.parity else "draws equal"
    spared = f"  in fp16: {', '.join(record.spared)}" if record.spared else ""
    attention = "  attention in float32: fp16 does not hold its scores" if record.float32_attention else ""
    return (
        f"{record.stage:<15} {record.precision}  {size_bytes / 1e6:>8.1f} MB  {record.build_s:>6.1f} s  "
        f"{checked} by {record.judge}  {record.builder} {record.builder_version}  {','.join(record.targets)}"
        f"{spared}{attention}"
    )


@contextmanager
def _stage_progress() -> Iterator[Callable[[str, str, float], None]]:
    """A bar for each stage on stderr; yields report(stage, what happens, how much of that is done)."""
    columns = (
        TextColumn("{task.fields[stage]:<15}"),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=stderr) as progress:

        def report(stage: str, what: str, done: float) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(what, total=1.0, stage=stage)
            progress.update(tasks[stage], description=what, completed=done)

        yield report
