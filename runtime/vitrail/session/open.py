"""Which implementation runs an export: the one place that chooses, and imports only what it chose."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from vitrail.errors import OptionError
from vitrail.plan.model import check_arithmetic
from vitrail.providers import Cpu, Cuda, OpenVino
from vitrail.session.contract import STAGES
from vitrail.session.kernels import check_decoder_kernels, check_kernels

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vitrail.manifest import DecoderContract, Manifest, VisionContract
    from vitrail.plan.model import Model
    from vitrail.providers import Provider
    from vitrail.session import DecoderSession, VisionSession


def open_vision(
    directory: Path,
    manifest: Manifest,
    provider: Provider,
    *,
    tiles_per_run: int = 8,
    stages: Sequence[str] = STAGES,
    optimize: bool = True,
) -> VisionSession:
    """The vision encoder and projector, or the `stages` named; `tiles_per_run` bounds the memory of one run. A TensorRT
    engine has its memory from the start, and runs as many tiles as it was built for.

    optimize=False runs an ONNX graph as it was exported. Raises OptionError for a provider that cannot be had here,
    with its cause, ArtifactError for artifacts that it cannot run.
    """
    _check_installed(provider)
    _check_arithmetic(manifest.vision, provider)
    check_kernels(manifest.vision, provider)
    if isinstance(provider, Cpu):
        from vitrail.session.ort import OrtVision  # noqa: PLC0415 - onnxruntime, only where it runs

        return OrtVision(
            directory,
            manifest,
            provider=provider,
            tiles_per_run=tiles_per_run,
            stages=stages,
            optimize=optimize,
        )
    if isinstance(provider, Cuda):
        from vitrail.session.cuda import OrtCudaVision, open_device  # noqa: PLC0415 - as above

        return OrtCudaVision(
            directory,
            manifest,
            device=open_device(provider),
            tiles_per_run=tiles_per_run,
            stages=stages,
            optimize=optimize,
        )
    from vitrail.session.trt import TrtVision  # noqa: PLC0415 - the driver, only where it runs

    return TrtVision(directory, manifest, provider=provider, stages=stages)


def open_decoder(
    directory: Path,
    manifest: Manifest,
    provider: Provider,
    *,
    slots: int,
    capacity: int,
    optimize: bool = True,
) -> DecoderSession:
    """The language model with a KV cache of `slots` rows of `capacity` tokens. Raises what open_vision raises."""
    _check_installed(provider)
    _check_arithmetic(manifest.decoder, provider)
    check_decoder_kernels(manifest.decoder, provider)
    if isinstance(provider, Cpu):
        from vitrail.session.ort import OrtDecoder  # noqa: PLC0415 - onnxruntime, only where it runs

        own = Cpu(provider.threads)  # beside OpenVINO, too
        return OrtDecoder(
            directory, manifest, provider=own, slots=slots, capacity=capacity, optimize=optimize
        )
    if isinstance(provider, Cuda):
        from vitrail.session.cuda import OrtCudaDecoder, open_device  # noqa: PLC0415 - as above

        device = open_device(provider)
        return OrtCudaDecoder(
            directory, manifest, device=device, slots=slots, capacity=capacity, optimize=optimize
        )
    from vitrail.session.trt import TrtDecoder  # noqa: PLC0415 - the driver, only where it runs

    return TrtDecoder(directory, manifest, provider=provider, slots=slots, capacity=capacity)


def check_forms(export: Manifest | Model, provider: Provider, *, gpu: str | None = None) -> None:
    """Raise OptionError for what the provider is known not to compute, without loading anything; gpu: see
    check_decoder_kernels.
    """
    for contract in (export.vision, export.decoder):
        _check_arithmetic(contract, provider)
    check_kernels(export.vision, provider)
    check_decoder_kernels(export.decoder, provider, gpu=gpu)


def _check_arithmetic(contract: VisionContract | DecoderContract, provider: Provider) -> None:
    """Before anything is loaded; of a GPU once there is one, by its session."""
    if isinstance(provider, Cpu):
        check_arithmetic(contract, gpu=None)


def _check_installed(provider: Provider) -> None:
    """Raise OptionError, naming the extra that brings it, where ONNX Runtime is wanted and not installed."""
    extra = {Cpu: "runtime", OpenVino: "runtime", Cuda: "gpu"}.get(type(provider))
    if extra and find_spec("onnxruntime") is None:
        raise OptionError(
            f"provider {provider} needs onnxruntime, which is not installed; pip install 'vitrail[{extra}]'"
        )
