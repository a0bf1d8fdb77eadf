"""The device under test: its name, its memory, waiting for it."""

from __future__ import annotations

import gc
import importlib
import os
import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vitrail.providers import Provider
from vitrail.session.cuda_driver import LibCuda


@dataclass(frozen=True, slots=True)
class Device:
    """`cuda` (the first GPU) or `cpu`, which is for trying the benchmark out. provider: what vitrail computes with."""

    kind: str
    provider: Provider

    @property
    def is_gpu(self) -> bool:
        return self.kind == "cuda"

    @property
    def name(self) -> str:
        return driver().gpu.name if self.is_gpu else "cpu"

    @property
    def slug(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    def synchronize(self) -> None:
        """Wait for what torch has queued; vitrail's sessions return when they are done."""
        if self.is_gpu and (cuda := torch_cuda()):
            cuda.synchronize()

    def used_bytes(self) -> int:
        """Of the whole device, whoever uses it; on a CPU of this process."""
        if self.is_gpu:
            free, total = driver().memory_bytes()
            return total - free
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def free_bytes(self) -> int:
        """Of the device; of the machine on a CPU."""
        if self.is_gpu:
            return driver().memory_bytes()[0]
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def release(self) -> None:
        """Give back what nothing refers to."""
        gc.collect()
        if self.is_gpu and (cuda := torch_cuda()):
            cuda.empty_cache()

    def fields(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "device": self.name,
            "provider": str(self.provider),
            "torch": installed("torch"),
            "transformers": installed("transformers"),
        }
        if self.is_gpu:
            gpu, total = driver().gpu, driver().memory_bytes()[1]
            found |= {
                "cuda": ".".join(map(str, gpu.cuda)),
                "capability": gpu.target,
                "device_memory_gib": round(total / 2**30, 1),
            }
        return found


@cache
def driver() -> LibCuda:
    """The first GPU's. For the thread that first asks."""
    return LibCuda(0)


@cache
def torch_cuda() -> Any:
    """`torch.cuda`, where torch can be imported and reaches the GPU; else None."""
    try:
        cuda = importlib.import_module("torch").cuda
    except Exception:  # noqa: BLE001 - the peer's own import tells why
        return None
    return cuda if cuda.is_available() else None


def installed(package: str) -> str | None:
    """Its version; None where it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
