"""Operators that a provider has no kernels for: known from the manifest, or found in a graph that is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitrail.errors import OptionError
from vitrail.providers import Cuda, OpenVino

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vitrail.manifest import DecoderContract, VisionContract
    from vitrail.providers import Provider

REMEDIES: dict[type, str] = {
    OpenVino: "with --vision-precision fp16 or int8-static",
    Cuda: "for a GPU: --vision-precision fp16, and --precision fp16 or --activations fp16 (or all in bf16)",
}
QUANTIZING = ("DynamicQuantizeMatMul",)
"""What a vision encoder in int8 becomes on ONNX Runtime, which quantizes its activations as they come."""
FLASH_TARGET = 80
"""The least compute capability, sm_80, that FlashAttention is for."""


def no_kernels(graph: str, provider: Provider, operators: Iterable[str]) -> OptionError:
    """The error for a graph file whose operators the provider leaves to ONNX Runtime's own CPU kernels."""
    return OptionError(
        f"{graph} has operators that provider {provider} has no kernel for, {', '.join(sorted(operators))}: the CPU would "
        f"compute them; export again {REMEDIES[type(provider)]}"
    )


def check_kernels(vision: VisionContract, provider: Provider) -> None:
    """Raise OptionError, without loading it, for a vision encoder that the provider is known to have no kernels for, or none
    that multiply in int8.
    """
    if vision.precision == "int8" and isinstance(provider, (Cuda, OpenVino)):
        raise no_kernels("vision_encoder.onnx", provider, QUANTIZING)
    if vision.precision == "int8-static" and isinstance(provider, Cuda):
        raise OptionError(
            f"vision precision int8-static is for CPUs: provider {provider} would round and restore the inputs of every product, "
            "and multiply in float32; export again with --vision-precision fp16"
        )


def check_decoder_kernels(decoder: DecoderContract, provider: Provider, *, gpu: str | None = None) -> None:
    """Raise OptionError, without loading it, for a language model that ONNX Runtime's CUDA provider is known to have no kernels
    for: on any GPU, and on `gpu`, such as sm_86, where one is told.

    tests/data/cuda_kernels.json has what the provider registers.
    """
    if not isinstance(provider, Cuda):
        return
    if lacking := _lacking(decoder):
        raise no_kernels("decoder.onnx", provider, lacking)
    if (decoder.dialect, decoder.dtype) == ("standard", "bfloat16") and decoder.precision != "bfloat16":
        raise OptionError(
            f"{decoder.precision} weights beside activations in bf16 in dialect standard have no kernel in provider {provider}, which "
            "restores no int8 by blocks; export again with --dialect ort, or with --activations fp16"
        )
    if decoder.cache == "int8":
        _check_int8_cache(provider, gpu)


def _lacking(decoder: DecoderContract) -> list[str]:
    """Operators that the CUDA provider registers no kernel of, in the types that this language model has them in."""
    products = ["MatMulIntegerToFloat"] if decoder.precision == "w8a8" else []
    fused = decoder.dialect == "ort" and decoder.dtype == "float32"
    return [*products, *(["GroupQueryAttention of float32"] if fused else [])]


def _check_int8_cache(provider: Cuda, gpu: str | None) -> None:
    """Prompts over an int8 cache are FlashAttention's alone, whatever decodes; it is for sm_80 and newer."""
    if provider.attention in ("efficient", "cudnn"):
        raise OptionError(
            f"an int8 KV cache has no kernel with attention={provider.attention}, only with auto and flash; "
            "leave the option out, or export again without --kv-cache int8"
        )
    if gpu and int(gpu.removeprefix("sm_")) < FLASH_TARGET:
        raise OptionError(
            f"an int8 KV cache has kernels on GPUs of sm_{FLASH_TARGET} or newer, and this GPU is {gpu}; "
            "export again without --kv-cache int8"
        )
