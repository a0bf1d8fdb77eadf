"""Why a GPU cannot be used, in words with a cure: from the driver, the loader, or what onnxruntime wrote. No onnxruntime."""

from __future__ import annotations

import ctypes
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CUDA_DRIVER_LEAST = 13000  # onnxruntime-gpu 1.31 is built for CUDA 13
CAPABILITY_LEAST = (7, 5)  # the oldest of the kernels in that wheel
NO_DEVICE, NOT_FOUND = 100, 101  # CUDA_ERROR_NO_DEVICE; CUDA_ERROR_INVALID_DEVICE

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


def driver_fault(device_id: int, library: str = "libcuda.so.1") -> str | None:
    """What keeps the driver from offering this GPU to CUDA 13, or None. Asks the driver itself; makes no context."""
    try:
        driver = ctypes.CDLL(library)
    except OSError as error:
        return cause_in(str(error)) or f"the NVIDIA driver does not load ({error}); {DRIVER_CURE}"
    code = driver.cuInit(0)
    if code:
        found = "finds no GPU" if code == NO_DEVICE else f"does not start (CUDA error {code})"
        return f"the NVIDIA driver {found}; {DRIVER_CURE}"
    version = _asked(driver.cuDriverGetVersion)
    if version < CUDA_DRIVER_LEAST:
        shown = f"{version // 1000}.{version % 1000 // 10}"
        return f"the NVIDIA driver reaches CUDA {shown}, 13.0 is needed; {DRIVER_CURE}"
    return _device_fault(driver, device_id)


def _device_fault(driver: ctypes.CDLL, device_id: int) -> str | None:
    count = _asked(driver.cuDeviceGetCount)
    if device_id >= count:
        return f"there is no GPU {device_id}: the driver finds {count}; choose one from 0 to {count - 1}"
    handle = _asked(driver.cuDeviceGet, device_id)
    # Attributes 75 and 76: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
    capability = tuple(_asked(driver.cuDeviceGetAttribute, attribute, handle) for attribute in (75, 76))
    if capability < CAPABILITY_LEAST:
        least = ".".join(map(str, CAPABILITY_LEAST))
        return (
            f"GPU {device_id} has compute capability {'.'.join(map(str, capability))}, {least} is needed; "
            "use a newer GPU, or provider cpu"
        )
    return None


def _asked(function: Callable[..., object], *arguments: int) -> int:
    """The integer that a driver function writes at its first argument."""
    answer = ctypes.c_int()
    function(ctypes.byref(answer), *arguments)
    return answer.value


def library_fault(library: Path) -> str | None:
    """What keeps a provider's library from loading, or None."""
    if not library.is_file():
        return f"{library.name} is not in this onnxruntime; {LIBRARY_CURE}"
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return cause_in(str(error)) or f"{library.name} does not load ({error}); {LIBRARY_CURE}"
    return None
