"""Refuse what cannot fit this machine, or its GPU, before anything is loaded."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from vitrail.errors import OptionError
from vitrail.machine import memory_bytes
from vitrail.plan.memory import plan_memory
from vitrail.plan.model import Load, model_of
from vitrail.plan.size import parse_size, show_size
from vitrail.providers import Cpu, Cuda, OpenVino, TensorRt
from vitrail.session.cuda_driver import LibCuda
from vitrail.session.cuda_memory import require_memory

if TYPE_CHECKING:
    from vitrail.manifest import EngineBuilder, Manifest
    from vitrail.plan.memory import Plan
    from vitrail.plan.model import Target
    from vitrail.providers import Provider
    from vitrail.session.cuda_driver import Driver
    from vitrail.settings import Settings

OVERRIDE = "VITRAIL_MEMORY"
"""Environment variable: a size that counts instead of this machine's memory, or `off` for no check."""
MARGIN = 0.1
"""How far a plan may be off: it is refused beyond that only."""

log = logging.getLogger(__name__)


def check_load(
    manifest: Manifest,
    settings: Settings,
    provider: Provider,
    *,
    tiles_per_run: int,
    feature_cache_bytes: int,
    server: bool,
    target: Target | None = None,
) -> None:
    """Check what an engine, or a server, would take of this machine's memory, and of its GPU's.

    target: None for what the provider tells. Raises OptionError, with the figures and the cure, where that is beyond
    the machine by more than MARGIN, or more than the GPU has free.
    """
    limit_bytes = memory_limit_bytes()
    if limit_bytes is None:
        return
    load = Load(
        slots=settings.slots,
        context_tokens=settings.capacity(manifest.decoder.context_tokens),
        prefill_chunk=settings.prefill_chunk,
        tiles_per_run=tiles_per_run,
        feature_cache_bytes=feature_cache_bytes,
    )
    target, driver = target or _target(provider), open_driver(provider)
    model = model_of(
        manifest,
        target,
        openvino=isinstance(provider, OpenVino),
        builder=_builder(provider),
        gpu=driver.gpu.target if driver else None,
    )
    plan = plan_memory(model, load, target=target, server=server)
    check_memory(plan, limit_bytes=limit_bytes)
    if driver is None:
        return
    try:
        check_device(plan, driver)
    finally:
        if server:  # its models have contexts of their own
            driver.leave()


def open_driver(provider: Provider) -> LibCuda | None:
    """Of the provider's GPU; None where it computes on none, or where none is to be had, which its session explains."""
    if isinstance(provider, Cpu):
        return None
    try:
        return LibCuda(provider.device_id)
    except OptionError:
        return None


def check_device(plan: Plan, driver: Driver) -> None:
    """Raise OptionError where the GPU has less free than the device's part of `plan`. A Jetson's is the machine's own."""
    if plan.place == "device":
        smaller = "" if plan.model.decoder.precision == "int4" else "export with --precision int4, "
        cure = f"{smaller}lower slots, context_tokens or tiles_per_run, or free some of it ({OVERRIDE}=off loads it all the same)"
        require_memory(driver, plan.on_device, cure=cure)


def memory_limit_bytes() -> int | None:
    """This machine's memory, or what the override says; None for no check. Raises OptionError where that is no size."""
    override = os.environ.get(OVERRIDE, "")
    if override == "off":
        return None
    return parse_size(override) if override else memory_bytes()


def check_memory(plan: Plan, *, limit_bytes: int) -> None:
    """Raise OptionError where the host's part of `plan` is beyond the limit by more than MARGIN; warn where it is beyond."""
    needed = plan.host_bytes
    if needed <= limit_bytes:
        return
    told = (
        f"{plan.model.name} may take {show_size(needed)} of memory ({_parts(plan)}), but this machine has "
        f"{show_size(limit_bytes)}"
    )
    if needed <= limit_bytes * (1 + MARGIN):
        log.warning("%s: it may run out when every slot is full", told)
        return
    raise OptionError(f"{told}; {_cure(plan, limit_bytes)} ({OVERRIDE}=off loads it all the same)")


def _target(provider: Provider) -> Target:
    if isinstance(provider, Cpu):
        return "cpu"
    return "cuda" if isinstance(provider, Cuda) else "tensorrt"


def _builder(provider: Provider) -> EngineBuilder:
    return "tensorrt-rtx" if isinstance(provider, TensorRt) and provider.rtx else "tensorrt"


def _parts(plan: Plan) -> str:
    sizes: dict[str, int] = {}
    for item in plan.on_host:
        sizes[item.kind] = sizes.get(item.kind, 0) + item.size_bytes
    return ", ".join(f"{kind} {show_size(size)}" for kind, size in sizes.items())


def _cure(plan: Plan, limit_bytes: int) -> str:
    """Fewer cached tokens where they are what does not fit, else a smaller model."""
    load, per_token = plan.load, plan.model.kv_bytes_per_token
    rest = plan.host_bytes - load.slots * load.context_tokens * per_token
    tokens = (limit_bytes - rest) // per_token
    if plan.target != "cpu" or tokens < 1024:
        smaller = "" if plan.model.decoder.precision == "int4" else "export with --precision int4, "
        return f"{smaller}lower slots, tiles_per_run or the feature cache, or take more memory"
    return (
        f"slots x context is {load.slots} x {load.context_tokens} tokens, {tokens} in all fit: lower slots (--slots) or "
        "context_tokens (--context)"
    )
