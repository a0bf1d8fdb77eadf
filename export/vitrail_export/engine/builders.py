"""Where TensorRT and TensorRT for RTX differ; they share their programming interface."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from vitrail.errors import OptionError
from vitrail.manifest import EngineBuilder, EnginePrecision
from vitrail.session.cuda_driver import LibCuda
from vitrail.session.trt_library import INSTALL, PACKAGES
from vitrail_export.engine.options import CURRENT

RTX_TARGETS = ("sm_86", "sm_89", "sm_120")
"""RTX 30, 40 and 50 series: what is built for RTX where nothing else is said."""
LEAST_CAPABILITY: dict[EnginePrecision, int] = {"bf16": 80, "fp8": 89}
KNOWN = {
    "sm_87": "Jetson Orin",
    "sm_90": "Hopper",
    "sm_100": "Blackwell B200",
    "sm_103": "Blackwell B300",
    "sm_110": "Jetson Thor",
}


@dataclass(frozen=True, slots=True)
class Builder:
    """An installed builder: its name, its Python module and the module's version."""

    name: EngineBuilder
    trt: Any

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    @property
    def has_timing_cache(self) -> bool:
        """TensorRT for RTX times nothing when it builds: it compiles its kernels on the GPU that loads the engine."""
        return self.name == "tensorrt"

    def targets(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """The compute capabilities to build for. Raises OptionError for those that this builder cannot."""
        if self.name == "tensorrt":
            return _only_current(wanted)
        resolved = (current_target() if each == CURRENT else each for each in wanted or RTX_TARGETS)
        targets = tuple(dict.fromkeys(resolved))
        supported = self.rtx_targets()
        for target in targets:
            if target not in supported:
                raise OptionError(_unsupported(target, self.version, supported))
        return targets

    def check_precision(self, precision: EnginePrecision, targets: tuple[str, ...]) -> None:
        """Raise OptionError for a GPU that does not know the type."""
        least = LEAST_CAPABILITY.get(precision, 0)
        older = [target for target in targets if int(target.removeprefix("sm_")) < least]
        if older:
            raise OptionError(
                f"precision {precision} needs GPUs from sm_{least} on, {', '.join(older)} is older; "
                "leave it out of --targets, or build --precision fp16"
            )

    def rtx_targets(self) -> tuple[str, ...]:
        names = self.trt.ComputeCapability.__members__
        return tuple(f"sm_{name[2:]}" for name in names if name.startswith("SM"))

    def configure(self, config: Any, targets: tuple[str, ...]) -> None:
        """Tell a builder config its targets; TensorRT's is the GPU that it runs on."""
        if self.name == "tensorrt":
            return
        config.num_compute_capabilities = len(targets)
        for i, target in enumerate(targets):
            capability = self.trt.ComputeCapability.__members__[target.replace("_", "").upper()]
            if not config.set_compute_capability(capability, i):
                raise OptionError(_unsupported(target, self.version, self.rtx_targets()))


def open_builder(name: EngineBuilder) -> Builder:
    """Raises OptionError saying how to install a builder that is missing."""
    package = PACKAGES[name]
    try:
        module = import_module(package)
    except ImportError as error:
        raise OptionError(
            f"--with {name} needs the Python package {package}, which cannot be imported ({error}); {INSTALL[name]}"
        ) from error
    return Builder(name, module)


def current_target() -> str:
    """The compute capability of this machine's first GPU, such as sm_86; OptionError where there is none."""
    try:
        return LibCuda(0).gpu.target
    except OptionError as error:
        raise OptionError(
            f"the target '{CURRENT}' is the GPU of this machine: {error}; "
            f"on a machine without one name what to build for: --with tensorrt-rtx --targets {','.join(RTX_TARGETS)}"
        ) from error


def _only_current(wanted: tuple[str, ...]) -> tuple[str, ...]:
    found = current_target()
    other = [target for target in wanted if target not in (CURRENT, found)]
    if other:
        raise OptionError(
            f"--with tensorrt builds for the GPU that it runs on, {found} here; build for {other[0]} on such a device: "
            "vitrail engine DIR --with tensorrt --targets current"
        )
    return (found,)


def _unsupported(target: str, version: str, supported: tuple[str, ...]) -> str:
    name = f"{target} ({KNOWN[target]})" if target in KNOWN else f"'{target}'"
    cure = (
        "build on the device itself: vitrail engine DIR --with tensorrt --targets current"
        if target in KNOWN
        else "choose among these"
    )
    return f"TensorRT-RTX {version} builds for {', '.join(supported)}, not for {name}; {cure}"
