"""Why a GPU cannot be used, in words with a cure: from the driver, the loader, or what onnxruntime wrote. No onnxruntime."""

from __future__ import annotations

import ctypes
import re
from typing import TYPE_CHECKING

from vitrail.errors import VitrailError
from vitrail.session.cuda_driver import LIBRARY, LibCuda

if TYPE_CHECKING:
    from pathlib import Path

CUDA_LEAST = (13, 0)  # onnxruntime-gpu 1.31 is built for it
CAPABILITY_LEAST = 75  # the oldest of the kernels in that wheel

DRIVER_CURE = "install NVIDIA's driver, 580 or newer, and check it with nvidia-smi (in a container: run it with --gpus all)"
LIBRARY_CURE = "install CUDA 13's libraries with: pip install 'vitrail[gpu]'"

_PATTERNS = (
    (r"(libcuda\.so\S*): cannot open shared object file", "the NVIDIA driver is missing ({0})", DRIVER_CURE),
    (r"(lib\S+\.so\S*): cannot open shared object file", "{0} is missing", LIBRARY_CURE),
    (r"(lib\S+\.so\S*): (version `[^']+' not found|undefined symbol\S*)", "{0} does not fit", LIBRARY_CURE),
    (
        r"(driver version is insufficient for CUDA runtime version|CUDA failure 35)",
        "the NVIDIA driver is older than CUDA 13",
        DRIVER_CURE,
    ),
    (r"(no CUDA-capable device is detected|CUDA failure 100)", "the driver finds no GPU", DRIVER_CURE),
    (
        r"(invalid device ordinal|CUDA failure 101)",
        "there is no GPU of that number",
        "choose another device, such as cuda:0 (nvidia-smi -L lists them)",
    ),
    (
        r"(no kernel image is available for execution on the device|CUDA failure 209)",
        "this onnxruntime has no kernels for the GPU's compute capability",
        "use another GPU, or an onnxruntime that is built for this one",
    ),
    (
        r"(out of memory|CUDA failure 2:|Failed to allocate memory for requested buffer of size \d+)",
        "the GPU's memory does not suffice ({0})",
        "lower slots, context or tiles per run, raise the provider's memory limit, or export at a lower precision",
    ),
    (r"CUDA failure (\d+: [^;]+?) *;", "CUDA failed ({0})", "look at nvidia-smi, and at the kernel's log"),
)


def cause_in(text: str) -> str | None:
    """Cause and cure of the first known failure in what onnxruntime or the loader wrote; None for an unknown one."""
    for pattern, cause, cure in _PATTERNS:
        if found := re.search(pattern, text):
            return f"{cause.format(found[1])}; {cure}"
    return None


def driver_fault(device_id: int, library: str = LIBRARY) -> str | None:
    """What keeps the driver from offering this GPU to CUDA 13, or None."""
    try:
        gpu = LibCuda(device_id, library=library).gpu
    except VitrailError as error:
        return str(error)
    if gpu.cuda < CUDA_LEAST:
        return f"the driver of {gpu.name} supports CUDA {_dotted(gpu.cuda)}, {_dotted(CUDA_LEAST)} is needed; {DRIVER_CURE}"
    if int(gpu.target.removeprefix("sm_")) < CAPABILITY_LEAST:
        return (
            f"{gpu.name} is {gpu.target}, sm_{CAPABILITY_LEAST} or newer is needed; "
            "use a newer GPU, or provider cpu"
        )
    return None


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def library_fault(library: Path) -> str | None:
    """What keeps a provider's library from loading, or None."""
    if not library.is_file():
        return f"{library.name} is not in this onnxruntime; {LIBRARY_CURE}"
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return cause_in(str(error)) or f"{library.name} does not load ({error}); {LIBRARY_CURE}"
    return None
