"""The machine that computes: its cores and memory, and what may be asked of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vitrail.errors import OptionError
from vitrail.providers import Cpu, with_threads

if TYPE_CHECKING:
    from vitrail.providers import Provider

_CPUS = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")
_CPUINFO = Path("/proc/cpuinfo")


class Shares(NamedTuple):
    """The providers of the vision models and of the language model, each with its threads."""

    vision: Provider
    decoder: Provider


def share_threads(provider: Provider, threads: int = 0, vision_threads: int = 0) -> Shares:
    """Divide a budget of threads, 0 for every physical core.

    vision_threads of them are the vision models' own, and the language model has the rest; with 0 both may use the
    whole budget, and the system's scheduler divides the cores while both are at work: none is idle while the other is.
    Raises OptionError for a budget above the machine, or one that leaves the language model nothing.
    """
    if not isinstance(provider, Cpu):
        with_threads(provider, threads or vision_threads)
        return Shares(provider, provider)
    budget = _within_cores(threads or provider.threads)
    if not 0 <= vision_threads < budget and vision_threads:
        raise OptionError(
            f"vision_threads is {vision_threads} of {budget} in all; give 1 to {budget - 1}, so that the language model "
            "has at least one, or 0 to share them all"
        )
    own = vision_threads or budget
    return Shares(with_threads(provider, own), with_threads(provider, budget - vision_threads))


def _within_cores(threads: int) -> int:
    cores = physical_cores()
    if threads > cores:
        raise OptionError(
            f"threads is {threads}, but this process may use {cores} physical cores; give at most that, or 0 for all"
        )
    return threads or cores


def check_memory(what: str, size_bytes: int, *, cure: str) -> None:
    """Raise OptionError where something may grow beyond this machine's memory."""
    limit = memory_bytes()
    if size_bytes > limit:
        raise OptionError(
            f"{what} may take {_gib(size_bytes)} GiB, but this machine has {_gib(limit)} GiB of memory; {cure}"
        )


def physical_cores() -> int:
    """Those that this process may use: of its CPUs, threads of one core counted once, within its container's quota."""
    cores = {_core(cpu) for cpu in os.sched_getaffinity(0)}
    return max(1, min(len(cores), _quota()))


def cpu_features() -> frozenset[str]:
    """What the processor can, in Linux's words: `amx_int8`, `avx512_bf16`."""
    lines = _read(_CPUINFO).splitlines()
    found = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(found.partition(":")[2].split())


def memory_bytes() -> int:
    """Of the machine, or of this process's container where that is less."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read(_CGROUP / "memory.max")
    return min(installed, int(limit)) if limit.isdecimal() else installed


def _core(cpu: int) -> tuple[str, str]:
    topology = _CPUS / f"cpu{cpu}" / "topology"
    return _read(topology / "physical_package_id"), _read(topology / "core_id") or f"cpu {cpu}"


def _quota() -> int:
    """Cores' worth of time that the container gets, rounded up."""
    quota, _, period = _read(_CGROUP / "cpu.max").partition(" ")
    return -(-int(quota) // int(period)) if quota.isdecimal() and period.isdecimal() else os.cpu_count() or 1


def _read(path: Path) -> str:
    """The file's text; nothing where there is none."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f}"
