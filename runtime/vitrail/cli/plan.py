"""`vitrail plan`: what fits a memory, before anything is built."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitrail.cli.make import CacheName, PrecisionName, PrefillName, VisionPrecisionName
from vitrail.cli.terminal import TargetName, command
from vitrail.errors import OptionError
from vitrail.manifest import FILENAME, load_manifest
from vitrail.plan.check import memory_limit_bytes, open_driver
from vitrail.plan.memory import KINDS, Plan, plan_memory
from vitrail.plan.model import Load, Model, model_of
from vitrail.plan.propose import TILE_LIMITS, Proposal, propose, smallest
from vitrail.plan.size import parse_size, show_size
from vitrail.providers import Cpu, Cuda, OpenVino, TensorRt, parse_provider
from vitrail.session.open import check_forms

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vitrail.plan.model import Target

SHOWN_TILES = (13, 4, 1)
DEFAULT_CONTEXT = 4096
_UNKNOWN_MEMORY = 1 << 62


@command(extra="export")
def plan(
    *,
    source: Annotated[
        str,
        typer.Argument(help="An export, a checkpoint (its config.json is enough), or a published model."),
    ],
    memory: Annotated[
        str | None, typer.Option(help="Such as 8GiB: a GPU's for cuda and tensorrt. [default: what is here]")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(help="Tokens of prompt and answer together. [default: 4096, or the model's limit]"),
    ] = None,
    streams: Annotated[int, typer.Option(help="Answers that are written at once.")] = 1,
    target: Annotated[TargetName, typer.Option(help="What it is served on.")] = TargetName.cpu,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="Whose engines of an export, such as sm_87. [default: this machine's, or the largest]"
        ),
    ] = None,
    tiles_per_run: Annotated[
        int | None, typer.Option(help="Tiles that the vision encoder takes at once. [default: what fits]")
    ] = None,
    prefill_chunk: Annotated[int, typer.Option(help="Prompt tokens of one step.")] = 512,
    feature_cache: Annotated[int, typer.Option(help="MiB of visual features that are kept.")] = 128,
    precision: Annotated[
        PrecisionName | None, typer.Option(help="Of the language model's weights. [default: several]")
    ] = None,
    prefill: Annotated[
        PrefillName | None, typer.Option(help="w8a8: prompts have a second copy of them.")
    ] = None,
    vision_precision: Annotated[
        VisionPrecisionName | None, typer.Option(help="Of the vision encoder. [default: the target's]")
    ] = None,
    kv_cache: Annotated[CacheName | None, typer.Option(help="Of the KV cache. [default: float]")] = None,
    provider: Annotated[
        str, typer.Option(help="With --target cpu: cpu, or openvino for vision in bf16.")
    ] = "cpu",
) -> None:
    """Tell what fits a memory: weights, KV cache, activations, workspace; a table, then one JSON line.

    Exit code 2 where not even one stream of a short context fits.
    """
    if streams < 1:
        raise OptionError(f"streams is {streams}; it must be at least 1")
    memory_bytes = parse_size(memory) if memory else _memory_here(target.target)
    wanted = {
        "precision": precision and precision.precision,
        "prefill": prefill and prefill.value,
        "vision_precision": vision_precision and vision_precision.precision,
        "cache": kv_cache and kv_cache.value,
    }
    vision_on = _cpu_provider(provider, target.target)
    models = _models(source, target.target, provider=vision_on, gpu=gpu, **wanted)
    load = Load(
        slots=streams,
        context_tokens=usable_context(context, models[0].decoder.context_tokens),
        prefill_chunk=prefill_chunk,
        feature_cache_bytes=feature_cache << 20,
    )
    only = None if tiles_per_run is None else (tiles_per_run,)
    shown, limits = only or SHOWN_TILES, only or TILE_LIMITS
    plans = [
        plan_memory(model, replace(load, tiles_per_run=tiles), target=target.target)
        for model, tiles in product(models, shown)
    ]
    best = propose(models, load, target=target.target, memory_bytes=memory_bytes, tile_limits=limits)
    for line in _table(plans, memory_bytes):
        typer.echo(line)
    if best is not None:
        typer.echo(_advice(best, load))
    typer.echo(json.dumps(_record(plans, best, memory_bytes)))
    if best is None:
        raise OptionError(
            _refusal(smallest(models, load, target=target.target, tile_limits=limits), memory_bytes)
        )


def usable_context(wanted: int | None, limit: int) -> int:
    """The context to plan. Raises OptionError beyond the model's own limit, as loading it would."""
    if wanted is not None and wanted > limit:
        raise OptionError(f"--context is {wanted}, but this model reaches {limit}; lower it to that")
    return min(DEFAULT_CONTEXT, limit) if wanted is None else wanted


def _memory_here(target: Target) -> int:
    """This machine's, or its first GPU's."""
    if target in ("cpu", "jetson"):
        return memory_limit_bytes() or _UNKNOWN_MEMORY
    from vitrail.session.cuda_driver import LibCuda  # noqa: PLC0415

    try:
        return LibCuda(0).memory_bytes()[1]
    except OptionError as error:
        raise OptionError(f"--memory is needed: {error}") from error


def _cpu_provider(provider: str, target: Target) -> Cpu:
    """Raises OptionError for a provider that is none of a CPU, or stands beside another target."""
    found = parse_provider(provider)
    if not isinstance(found, Cpu):
        raise OptionError(f"--provider is {provider}; plan a GPU with --target cuda, tensorrt or jetson")
    if target != "cpu" and isinstance(found, OpenVino):
        raise OptionError(
            f"--provider {provider} is for --target cpu, and the target is {target}; leave one of them out"
        )
    return found


def _gpu_here(target: Target) -> str | None:
    """The compute capability of this machine's first GPU, where the target has one and it is here."""
    driver = None if target == "cpu" else open_driver(TensorRt())
    return driver.gpu.target if driver else None


def _models(source: str, target: Target, *, provider: Cpu, gpu: str | None, **wanted: Any) -> list[Model]:
    """An export as it is, or what can be made of a checkpoint, the most precise first. provider: on a CPU."""
    path, openvino = Path(source), isinstance(provider, OpenVino)
    if (path / FILENAME).is_file():
        _refuse_forms(source, wanted)
        manifest = load_manifest(path)
        _check_gpu(gpu, {each for engine in manifest.engines for each in engine.targets}, target)
        here = gpu or _gpu_here(target)
        model = model_of(manifest, target, openvino=openvino, gpu=here)
        _check_forms([model], target, provider, here)
        return [model]
    _check_gpu(gpu, set(), target)
    from vitrail_export.forms import Wanted, forms  # noqa: PLC0415
    from vitrail_export.sizes import find_source, sized  # noqa: PLC0415

    found = find_source(source)
    chosen = forms(target, Wanted(openvino=openvino, **wanted))
    models = [sized(found, options, openvino=openvino) for options in chosen]
    _check_forms(models, target, provider, gpu)
    return models


def _check_forms(models: Sequence[Model], target: Target, provider: Cpu, gpu: str | None) -> None:
    """Raise OptionError for what loading would refuse: what ONNX Runtime is known not to compute there."""
    if target in ("cpu", "cuda"):
        for model in models:
            check_forms(model, Cuda() if target == "cuda" else provider, gpu=gpu)


def _check_gpu(gpu: str | None, built: set[str], target: Target) -> None:
    """Raise OptionError for a GPU that was asked for and has no engines here."""
    usable = built if target in ("tensorrt", "jetson") else set()
    if gpu is not None and gpu not in usable:
        raise OptionError(
            f"--gpu {gpu} names no engines to plan with --target {target} (built for: {', '.join(sorted(built)) or 'nothing'}); "
            "leave it out, or build them with `vitrail engine`"
        )


def _refuse_forms(source: str, wanted: Mapping[str, Any]) -> None:
    given = [name for name, value in wanted.items() if value is not None]
    if given:
        option = {"cache": "kv-cache"}.get(given[0], given[0]).replace("_", "-")
        raise OptionError(
            f"'{source}' is an export, planned as it is; leave out --{option}, or name its checkpoint"
        )


def _table(plans: Sequence[Plan], memory_bytes: int) -> list[str]:
    first = plans[0]
    where = "" if first.place == "host" else " of GPU memory"
    given = "" if memory_bytes == _UNKNOWN_MEMORY else f" in {show_size(memory_bytes)}{where}"
    head = f"{first.model.name} on {first.target}{given}: {first.load.slots} x {first.load.context_tokens} tokens"
    columns = ["decoder", "vision", "tiles", *KINDS, "total", "fits"]
    rows = [columns, *(_row(plan, memory_bytes) for plan in plans)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(columns))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return [head, *lines]


def _row(plan: Plan, memory_bytes: int) -> list[str]:
    model, load = plan.model, plan.load
    sizes = [show_size(size) if size else "-" for size in (*plan.by_kind.values(), plan.total_bytes)]
    fits = "yes" if plan.total_bytes <= memory_bytes else "no"
    return [model.decoder_form, model.vision_form, str(load.tiles_per_run), *sizes, fits]


def _advice(best: Proposal, load: Load) -> str:
    chosen = best.plan.load
    asked = (chosen.slots, chosen.context_tokens) == (load.slots, load.context_tokens)
    less = "" if asked else f" (less than the {load.slots} x {load.context_tokens} asked)"
    return (
        f"best: {_setting(best.plan)}{less}, {show_size(best.plan.total_bytes)}; "
        f"room for {best.most_slots} slots, or a context of {best.most_context_tokens}"
    )


def _refusal(least: Plan, memory_bytes: int) -> str:
    return (
        f"nothing fits: the memory is {show_size(memory_bytes)}, and the least there is, {_setting(least)}, takes "
        f"{show_size(least.total_bytes)}; take a smaller model, or a machine with more memory"
    )


def _setting(plan: Plan) -> str:
    model, load = plan.model, plan.load
    return (
        f"decoder {model.decoder_form}, vision {model.vision_form}, --tiles-per-run {load.tiles_per_run} "
        f"--slots {load.slots} --context {load.context_tokens}"
    )


def _record(plans: Sequence[Plan], best: Proposal | None, memory_bytes: int) -> dict[str, Any]:
    return {
        "model": plans[0].model.name,
        "target": plans[0].target,
        "memory_bytes": None if memory_bytes == _UNKNOWN_MEMORY else memory_bytes,
        "plans": [_fields(plan) | {"fits": plan.total_bytes <= memory_bytes} for plan in plans],
        "best": best
        and _fields(best.plan)
        | {"most_slots": best.most_slots, "most_context_tokens": best.most_context_tokens},
    }


def _fields(plan: Plan) -> dict[str, Any]:
    model, load = plan.model, plan.load
    return {
        "decoder": model.decoder.precision,
        "prefill": model.decoder.prefill,
        "vision": model.vision.precision,
        "openvino": model.openvino,
        "kv_cache": model.decoder.cache_dtype,
        "slots": load.slots,
        "context_tokens": load.context_tokens,
        "tiles_per_run": load.tiles_per_run,
        **{f"{kind.replace(' ', '_')}_bytes": size for kind, size in plan.by_kind.items()},
        "total_bytes": plan.total_bytes,
        "host_bytes": plan.host_bytes,
    }
