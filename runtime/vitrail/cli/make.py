"""`vitrail export`, `verify` and `synthesize`: what is done once per model."""

from __future__ import annotations

import shlex
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitrail.cli.terminal import PROVIDER_HELP, byte_progress, command, stderr
from vitrail.dtypes import Arithmetic
from vitrail.errors import OptionError
from vitrail.machine import cpu_features
from vitrail.manifest import Manifest, Parity, Precision, VisionPrecision
from vitrail.providers import parse_provider

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vitrail_export.options import ExportOptions


LONG_NAMES: dict[str, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""What a manifest calls them; other precisions have one name."""


class PrecisionName(str, Enum):
    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"
    w8a8 = "w8a8"
    int4 = "int4"

    @property
    def precision(self) -> Precision:
        return LONG_NAMES.get(self.value, self.value)  # type: ignore[return-value]


class VisionPrecisionName(str, Enum):
    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"
    static = "int8-static"

    @property
    def precision(self) -> VisionPrecision:
        return LONG_NAMES.get(self.value, self.value)  # type: ignore[return-value]


class FloatPrecision(str, Enum):
    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"

    @property
    def dtype(self) -> Arithmetic:
        return LONG_NAMES[self.value]  # type: ignore[return-value]


class QuantizerName(str, Enum):
    rtn = "rtn"
    gptq = "gptq"


class CacheName(str, Enum):
    same = "float"
    int8 = "int8"


class TableName(str, Enum):
    same = "float"
    int8 = "int8"
    int4 = "int4"


class PrefillName(str, Enum):
    same = "same"
    w8a8 = "w8a8"


class DialectName(str, Enum):
    ort = "ort"
    standard = "standard"


class Layout(str, Enum):
    original = "original"
    hf = "hf"


@command(extra="export")
def export(
    *,
    checkpoint: Annotated[
        str, typer.Argument(help="Directory of an InternVL checkpoint, or a Hugging Face id.")
    ],
    out: Annotated[Path, typer.Option(help="Directory for the artifacts; new, empty or an earlier export.")],
    precision: Annotated[
        PrecisionName,
        typer.Option(
            help="Of the language model's weights; w8a8 multiplies in int8, the fastest on a CPU; bf16 is for GPUs."
        ),
    ] = PrecisionName.int4,
    prefill: Annotated[
        PrefillName,
        typer.Option(help="w8a8: prompts are read by a second copy of the weights, in int8 products."),
    ] = PrefillName.same,
    vision_precision: Annotated[
        VisionPrecisionName,
        typer.Option(
            help="Of the vision encoder; int8-static, fitted to --calibration, is fastest on a CPU."
        ),
    ] = VisionPrecisionName.fp32,
    activations: Annotated[
        FloatPrecision,
        typer.Option(help="Of activations and KV cache beside int8 and int4 weights; bf16 is for GPUs."),
    ] = FloatPrecision.fp32,
    dialect: Annotated[
        DialectName, typer.Option(help="ort for ONNX Runtime, standard for TensorRT.")
    ] = DialectName.ort,
    quantizer: Annotated[
        QuantizerName, typer.Option(help="Of integer weights: rounded, or fitted to --calibration.")
    ] = QuantizerName.rtn,
    calibration: Annotated[
        Path | None, typer.Option(help="Directory of pictures, for int8-static, gptq and an int8 KV cache.")
    ] = None,
    sensitive: Annotated[
        str,
        typer.Option(
            help="What int4 and w8a8 keep in int8 weights: lm_head, first, last, v, down, by commas; or none."
        ),
    ] = "lm_head",
    kv_cache: Annotated[
        CacheName, typer.Option(help="Of the KV cache; int8 is fitted to --calibration.")
    ] = CacheName.same,
    embeddings: Annotated[
        TableName | None, typer.Option(help="Of the embedding table; int8 beside integer weights.")
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Run the artifacts; compare them with PyTorch where torch is installed.")
    ] = True,
) -> None:
    """Turn a checkpoint into ONNX artifacts with their manifest, and check them."""
    from vitrail_export.options import ExportOptions, read_sensitive  # noqa: PLC0415

    options = ExportOptions(
        precision=precision.precision,
        prefill=prefill.value,
        vision_precision=vision_precision.precision,
        activations=activations.dtype,
        dialect=dialect.value,
        quantizer=quantizer.value,
        calibration=calibration,
        sensitive=read_sensitive(sensitive),
        cache=kv_cache.value,
        embeddings=None if embeddings is None else embeddings.value,
    )
    _refuse_unused(options)
    manifest = _write(checkpoint, out, options, write_manifest=not check)
    if check:
        _check(manifest, out, checkpoint)
    for line in (*_hints(options), *_next(manifest, out, checkpoint, checked=check)):
        stderr.print(line)


def _write(checkpoint: str, out: Path, options: ExportOptions, *, write_manifest: bool) -> Manifest:
    """The artifacts, with a bar while they are written."""
    from vitrail_export.exporter import export_checkpoint  # noqa: PLC0415

    started = time.monotonic()
    with byte_progress() as progress:
        manifest = export_checkpoint(
            checkpoint, out, options=options, progress=progress, write_manifest=write_manifest
        )
    stderr.print(f"wrote {out}: {_size_text(manifest)} in {time.monotonic() - started:.0f} s")
    return manifest


def _check(manifest: Manifest, out: Path, checkpoint: str) -> None:
    """Run the artifacts, and tell how they compare. Raises ExportError."""
    from vitrail_export.verify import check  # noqa: PLC0415

    with stderr.status("checking") as status:
        found = check(
            out, checkpoint, manifest=manifest, report=lambda stage: status.update(f"checking {stage}")
        )
    for line in _parity_lines(found) or ["every stage is finite; install torch to compare with it"]:
        stderr.print(line)


def _next(manifest: Manifest, out: Path, checkpoint: str, *, checked: bool) -> Iterator[str]:
    """What to do with the artifacts."""
    gpu = " --target cuda" if "bfloat16" in (manifest.vision.dtype, manifest.decoder.dtype) else ""
    if checked and gpu:
        told = f"vitrail verify {shlex.quote(str(out))} --against {shlex.quote(checkpoint)} --provider cuda"
        yield f"bf16 was emulated, since CPUs have no kernels for it; on the GPU: {told}"
    yield f"next: vitrail serve {shlex.quote(str(out))}{gpu}"


def _refuse_unused(options: ExportOptions) -> None:
    """Raise OptionError for what was asked for and would change nothing."""
    if not options.bits and options.activations not in ("float32", options.precision):
        raise OptionError(
            f"activations in {options.activations} are for int8 and int4 weights; with precision {options.precision} they "
            "are in that: leave --activations out, or change --precision"
        )
    if options.calibration and not (options.calibrated or options.fits_vision):
        raise OptionError(
            f"--calibration {options.calibration} would not be used: it is for --vision-precision int8-static, "
            "--quantizer gptq and --kv-cache int8; ask for one of these, or leave it out"
        )


def _hints(options: ExportOptions) -> list[str]:
    """What this processor could do better with, if it is to run the export."""
    if options.dialect == "standard" or "amx_int8" not in cpu_features():
        return []
    found = []
    if (
        options.precision in ("int8", "int4")
        and options.activations == "float32"
        and not options.prefill_form
    ):
        found.append("--prefill w8a8 reads prompts several times faster")
    if options.vision_precision in ("float32", "float16"):
        found.append("--vision-precision int8-static --calibration PICTURES encodes pictures faster")
    return [f"hint: on this processor, which has AMX, {each}" for each in found]


@command(extra="verify")
def verify(
    artifacts: Annotated[Path, typer.Argument(help="Directory that `vitrail export` wrote.")],
    against: Annotated[str, typer.Option(help="The checkpoint that it was made from.")],
    provider: Annotated[str, typer.Option(help=PROVIDER_HELP)] = "cpu",
) -> None:
    """Compare artifacts with the float32 PyTorch reference, stage by stage, and record the result."""
    from vitrail_export.verify import verify as compare  # noqa: PLC0415

    computing = parse_provider(provider)
    with stderr.status("loading the reference") as status:
        found = compare(artifacts, against, report=status.update, provider=computing)
    typer.echo("\n".join(_parity_lines(found)))


@command(extra="verify")
def sensitivity(
    checkpoint: Annotated[str, typer.Argument(help="Directory of a checkpoint, or a Hugging Face id.")],
    calibration: Annotated[Path, typer.Option(help="Directory of pictures that it is asked about.")],
) -> None:
    """Tell what int4 costs in each part of the language model: which parts to name with --sensitive."""
    from vitrail_export.fit import sensitive_parts  # noqa: PLC0415

    with stderr.status("asking the float32 model") as status:
        found = sensitive_parts(
            checkpoint, calibration, report=lambda part: status.update(f"rounding {part}")
        )
    typer.echo(f"{'part':<12}{'weights':>10}{'divergence, nats':>18}{'tokens changed':>16}")
    for cost in found:
        size = f"{cost.weights / 1e6:.1f} M"
        typer.echo(f"{cost.part:<12}{size:>10}{cost.divergence:>18.5f}{cost.changed:>16.1%}")


@command(extra="export")
def synthesize(
    *,
    name: Annotated[str, typer.Argument(help="A published model, such as internvl2-2b.")],
    out: Annotated[Path, typer.Option(help="Directory for the checkpoint; new or empty.")],
    layout: Annotated[
        Layout, typer.Option(help="original as the authors publish, hf as transformers reads.")
    ] = Layout.original,
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
    layers: Annotated[int | None, typer.Option(help="Keep only so many layers of each tower.")] = None,
) -> None:
    """Write random weights in a published model's exact configuration, for benchmarks and tests."""
    from vitrail_export.synthesize import size_bytes  # noqa: PLC0415
    from vitrail_export.synthesize import synthesize as write  # noqa: PLC0415

    total, done = size_bytes(name, layers=layers), 0
    with byte_progress(total) as show:

        def advance(weight: str, size: int) -> None:
            nonlocal done
            done += size
            show(weight, done, total)

        write(name, out, layout=layout.value, seed=seed, layers=layers, progress=advance)
    stderr.print(f"next: vitrail export {shlex.quote(str(out))} --out artifacts")


def _parity_lines(found: tuple[Parity, ...]) -> list[str]:
    return [
        f"{parity.stage:<16} cosine {parity.cosine:.6f}   max abs error {parity.max_abs_error:.3g}"
        for parity in found
    ]


def _size_text(manifest: Manifest) -> str:
    size_bytes = sum(artifact.size_bytes for artifact in manifest.artifacts.values())
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"
