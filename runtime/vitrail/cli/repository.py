"""`vitrail repository`: a Triton model repository, for a server that is started elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitrail.cli.terminal import PROVIDER_HELP, TargetName, command, stderr

if TYPE_CHECKING:
    from vitrail.plan.model import Target
    from vitrail.providers import Provider


@command(extra="runtime")
def repository(
    *,
    artifacts: Annotated[Path, typer.Argument(help="Directory that `vitrail export` wrote.")],
    out: Annotated[Path, typer.Option(help="Directory for the repository; new, empty or an earlier one.")],
    target: Annotated[
        TargetName,
        typer.Option(
            help="cpu: python backend; cuda: Triton's onnxruntime for vision; tensorrt, jetson: its tensorrt."
        ),
    ] = TargetName.cpu,
    gpu: Annotated[
        str | None, typer.Option(help="Which engines, where there are several: sm_86, say.")
    ] = None,
    mounted_at: Annotated[
        Path | None,
        typer.Option(
            help="Where the server finds the artifacts, as in a container. [default: where they are]"
        ),
    ] = None,
    slots: Annotated[int, typer.Option(help="Answers that are written at once.")] = 4,
    context: Annotated[
        int | None,
        typer.Option(help="Tokens of prompt and answer together. [default: the export's, at most 8192]"),
    ] = None,
    prefill_chunk: Annotated[int, typer.Option(help="Prompt tokens of one step.")] = 512,
    queue: Annotated[int, typer.Option(help="Answers that may wait before the server says busy.")] = 64,
    tiles_per_run: Annotated[int, typer.Option(help="Bounds the vision encoder's memory.")] = 8,
    provider: Annotated[
        str | None, typer.Option(help=f"Of the decoder. {PROVIDER_HELP} [default: the target's]")
    ] = None,
) -> None:
    """Write a Triton model repository and say how to serve it. `vitrail serve` needs none."""
    from vitrail.manifest import load_manifest  # noqa: PLC0415
    from vitrail.settings import Settings  # noqa: PLC0415
    from vitrail.triton.repository import ServingSettings, write_repository  # noqa: PLC0415
    from vitrail.triton.targets import tensorrt_version  # noqa: PLC0415

    settings = ServingSettings(
        decoder=Settings(slots=slots, context_tokens=context, prefill_chunk=prefill_chunk, queue_limit=queue),
        tiles_per_run=tiles_per_run,
        target=target.target,
        gpu=gpu,
        provider=decoder_provider(artifacts, target.target, provider=provider),
    )
    version = tensorrt_version(
        load_manifest(artifacts),
        artifacts,
        target=settings.target,
        provider=settings.provider,
        gpu=settings.gpu,
    )
    written = write_repository(artifacts, out, settings=settings, mounted_at=mounted_at)
    stderr.print(f"wrote {written} for {target.value}; the decoder runs on {settings.provider}")
    if version is not None:
        stderr.print(
            f"needs: a Triton with TensorRT {version}, which built the engines; no other version runs them"
        )
    stderr.print(
        f"next: tritonserver --model-repository={written} --disable-auto-complete-config --exit-on-error=false"
    )


def decoder_provider(artifacts: Path, target: Target, *, provider: str | None) -> Provider:
    """The one that is given, or the target's own."""
    from vitrail.manifest import load_manifest  # noqa: PLC0415
    from vitrail.providers import parse_provider  # noqa: PLC0415
    from vitrail.triton.targets import default_provider  # noqa: PLC0415

    if provider is not None:
        return parse_provider(provider)
    return default_provider(load_manifest(artifacts), target)
