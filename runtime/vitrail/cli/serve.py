"""`vitrail serve`: a supervised tritonserver in the foreground."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitrail.cli.repository import decoder_provider
from vitrail.cli.terminal import PROVIDER_HELP, TargetName, command, stderr
from vitrail.errors import OptionError
from vitrail.machine import cpu_features
from vitrail.manifest import load_manifest
from vitrail.providers import Cpu

if TYPE_CHECKING:
    from vitrail.manifest import Manifest
    from vitrail.providers import Provider
    from vitrail.triton.options import ServerOptions, Tls
    from vitrail.triton.repository import ServingSettings
    from vitrail.triton.server import Server


@command(extra="server")
def serve(
    *,
    artifacts: Annotated[Path, typer.Argument(help="Directory that `vitrail export` wrote.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for every interface.")
    ] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(help="Where clients connect; 0 for any free port.")] = 8001,
    http_port: Annotated[int, typer.Option(help="Health and KServe over HTTP.")] = 8000,
    metrics_port: Annotated[int, typer.Option(help="Prometheus metrics.")] = 8002,
    slots: Annotated[int, typer.Option(help="Answers that are written at once.")] = 4,
    context: Annotated[
        int | None,
        typer.Option(help="Tokens of prompt and answer together. [default: the export's, at most 8192]"),
    ] = None,
    prefill_chunk: Annotated[int, typer.Option(help="Most prompt tokens of one step.")] = 512,
    tpot_slowdown: Annotated[
        float,
        typer.Option(
            help="How many times longer answers may take per token while prompts are read; inf for no bound."
        ),
    ] = 1.75,
    tpot_target: Annotated[
        float | None, typer.Option(help="Or milliseconds per token that they may take, on average.")
    ] = None,
    queue: Annotated[int, typer.Option(help="Answers that may wait before the server says busy.")] = 64,
    deadline: Annotated[float, typer.Option(help="Seconds for a request that names none.")] = 600.0,
    feature_cache: Annotated[
        int, typer.Option(help="MiB of visual features kept of tiles that were seen; 0 for none.")
    ] = 128,
    prefix_cache: Annotated[
        bool, typer.Option(help="Use again what is still cached of a prompt's beginning.")
    ] = True,
    provider: Annotated[
        str | None, typer.Option(help=f"{PROVIDER_HELP} [default: the target's]", show_default=False)
    ] = None,
    target: Annotated[
        TargetName,
        typer.Option(help="cuda, tensorrt, jetson: vision on Triton's own backends, in NVIDIA's container."),
    ] = TargetName.cpu,
    gpu: Annotated[
        str | None, typer.Option(help="With --target tensorrt: which engines, where there are several.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Of the whole server; 0 for every physical core.")] = 0,
    vision_threads: Annotated[
        int, typer.Option(help="How many of them only the vision models use; 0 to share them all.")
    ] = 0,
    tiles_per_run: Annotated[int, typer.Option(help="Bounds the vision encoder's memory.")] = 8,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate, for TLS on the gRPC port.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM key that belongs to it.")] = None,
    tritonserver: Annotated[
        Path | None, typer.Option(help="The server's binary. [default: on PATH, or nvidia-pytriton's]")
    ] = None,
    log: Annotated[Path | None, typer.Option(help="File for the server's log.")] = None,
    metrics: Annotated[
        bool, typer.Option(help="Publish vitrail's own series beside Triton's on the metrics port.")
    ] = True,
    otel: Annotated[
        str | None, typer.Option(help="Collector of traces, OTLP over HTTP: http://HOST:4318/v1/traces.")
    ] = None,
    otel_rate: Annotated[int, typer.Option(help="Trace one of so many requests.")] = 1,
    watchdog: Annotated[
        float,
        typer.Option(help="Seconds without progress after which a model's process is ended; 0 for never."),
    ] = 600.0,
    keep_going: Annotated[
        bool,
        typer.Option(
            "--keep-going",
            help="Serve what can be loaded, text alone at least. [default: end with the reason]",
        ),
    ] = False,
    triton_arg: Annotated[
        list[str] | None, typer.Option(help="One more argument for tritonserver; may be repeated.")
    ] = None,
) -> None:
    """Serve artifacts on NVIDIA Triton until Ctrl-C or SIGTERM."""
    from vitrail.decoder import Settings  # noqa: PLC0415
    from vitrail.triton.options import ServerOptions  # noqa: PLC0415
    from vitrail.triton.repository import ServingSettings  # noqa: PLC0415

    options = ServerOptions(
        host=host,
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
        tls=_tls(tls_cert, tls_key),
        tritonserver=tritonserver,
        log=log,
        metrics=metrics,
        otel=otel,
        otel_rate=otel_rate,
        watchdog_s=watchdog,
        keep_going=keep_going,
        extra_args=tuple(triton_arg or ()),
    )
    decoder = Settings(
        slots=slots,
        context_tokens=context,
        prefill_chunk=prefill_chunk,
        queue_limit=queue,
        default_deadline_s=deadline,
        prefix_cache=prefix_cache,
        tpot_slowdown=tpot_slowdown,
        tpot_target_ms=tpot_target,
    )
    settings = ServingSettings(
        decoder=decoder,
        provider=decoder_provider(artifacts, target.target, provider=provider),
        target=target.target,
        gpu=gpu,
        threads=threads,
        vision_threads=vision_threads,
        tiles_per_run=tiles_per_run,
        feature_cache_bytes=feature_cache << 20,
    )
    _run(artifacts, options, settings)


def _run(artifacts: Path, options: ServerOptions, settings: ServingSettings) -> None:
    """Until it is told to stop; what goes on is told on stderr."""
    from vitrail.triton.serve import serve as run  # noqa: PLC0415

    faster = _is_for_bfloat16(load_manifest(artifacts), settings.provider)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with stderr.status("starting tritonserver") as status:

        def show_ready(server: Server) -> None:
            status.stop()
            _announce(server)
            if faster:
                stderr.print("hint: on this processor --provider openvino encodes pictures faster")

        run(
            artifacts,
            options=options,
            settings=settings,
            on_progress=lambda models: status.update(f"loaded {', '.join(models)}"),
            on_ready=show_ready,
            on_event=stderr.print,
        )
    stderr.print("stopped")


def _is_for_bfloat16(manifest: Manifest, provider: Provider) -> bool:
    """Whether vision is about to be computed where OpenVINO is faster: in bfloat16, or in static int8 beside it."""
    floating = manifest.vision.precision != "int8" and manifest.vision.dialect == "ort"
    return type(provider) is Cpu and floating and "amx_bf16" in cpu_features()


def _announce(server: Server) -> None:
    for model, reason in server.failed.items():
        stderr.print(f"failed: model '{model}': {reason}")
    state = "ready for text alone" if server.failed else "ready"
    stderr.print(f"{state}: gRPC {server.grpc_url}, HTTP {server.options.http_url}, log {server.log_path}")
    picture = "" if server.failed else "IMAGE "
    stderr.print(f"ask:   vitrail ask {picture}-q QUESTION --url {server.grpc_url}")


def _tls(certificate: Path | None, key: Path | None) -> Tls | None:
    from vitrail.triton.options import Tls  # noqa: PLC0415

    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise OptionError("TLS needs both --tls-cert and --tls-key; give the other one too")
    return Tls(certificate=certificate, key=key)
