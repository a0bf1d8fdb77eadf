"""The device under test: its name, its memory, waiting for it."""

from __future__ import annotations

import gc
import os
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vitrail.providers import Provider


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
        return torch.cuda.get_device_name() if self.is_gpu else "cpu"

    @property
    def slug(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    def synchronize(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()

    def used_bytes(self) -> int:
        """Of the whole device, whoever uses it; on a CPU of this process."""
        if self.is_gpu:
            free, total = torch.cuda.mem_get_info()
            return int(total - free)
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def free_bytes(self) -> int:
        """Of the device; of the machine on a CPU."""
        if self.is_gpu:
            return int(torch.cuda.mem_get_info()[0])
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def release(self) -> None:
        """Give back what nothing refers to."""
        gc.collect()
        if self.is_gpu:
            torch.cuda.empty_cache()

    def fields(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "device": self.name,
            "provider": str(self.provider),
            "torch": torch.__version__,
            "transformers": installed("transformers"),
        }
        if self.is_gpu:
            properties = torch.cuda.get_device_properties(0)
            found |= {
                "cuda": torch.version.cuda,
                "capability": f"sm_{properties.major}{properties.minor}",
                "multiprocessors": properties.multi_processor_count,
                "device_memory_gib": round(properties.total_memory / 2**30, 1),
            }
        return found


def installed(package: str) -> str | None:
    """Its version; None where it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
