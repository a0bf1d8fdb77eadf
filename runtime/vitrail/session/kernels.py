"""Operators that a provider has no kernels for: known from the manifest, or found in a graph that is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitrail.errors import OptionError
from vitrail.providers import Cuda, OpenVino

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vitrail.manifest import VisionContract
    from vitrail.providers import Provider

REMEDIES: dict[type, str] = {
    OpenVino: "with --vision-precision fp16 or int8-static",
    Cuda: "for a GPU: --vision-precision fp16, and --precision fp16 or --activations fp16 (or all in bf16)",
}
QUANTIZING = ("DynamicQuantizeMatMul",)
"""What a vision encoder in int8 becomes on ONNX Runtime, which quantizes its activations as they come."""


def no_kernels(graph: str, provider: Provider, operators: Iterable[str]) -> OptionError:
    """The error for a graph file whose operators the provider leaves to ONNX Runtime's own CPU kernels."""
    return OptionError(
        f"{graph} has operators that provider {provider} has no kernel for, {', '.join(sorted(operators))}: the CPU would "
        f"compute them; export again {REMEDIES[type(provider)]}"
    )


def check_kernels(vision: VisionContract, provider: Provider) -> None:
    """Raise OptionError, without loading it, for a vision encoder that the provider is known to have no kernels for."""
    if isinstance(provider, OpenVino) and vision.precision == "int8":
        raise no_kernels("vision_encoder.onnx", provider, QUANTIZING)
