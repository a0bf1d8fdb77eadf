"""The command that builds engines anew, for messages that refuse those there are. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from vitrail.manifest import EngineBuilder, EngineRecord, EngineStage, Manifest, Stage

DEFAULTS: dict[str, int | str] = {
    "--max-tiles": 13,
    "--slots": 4,
    "--prefill-chunk": 512,
    "--precision": "fp16",
}
"""What `vitrail engine` takes where nothing is said, and so is not said."""
NOT_FOR_RTX = frozenset({"sm_87", "sm_90", "sm_100", "sm_103", "sm_110"})
"""Orin, Hopper, datacenter Blackwell and Thor, whose engines TensorRT itself has to build."""


def engine_command(
    stage: EngineStage,
    builder: EngineBuilder,
    targets: str,
    *,
    directory: Path | str = "DIR",
    like: Iterable[EngineRecord] = (),
    changed: Mapping[str, int] | None = None,
    unfit: Collection[Stage] = (),
) -> str:
    """The command that builds the engines of `directory` for `targets`, that of `stage` among them.

    like: engines whose form the new ones have, but for what is `changed`, options by name: those of the same builder
    that are for one of `targets`, or all of the builder's. unfit: stages that are made anew from the checkpoint.
    """
    if builder == "tensorrt-rtx" and NOT_FOR_RTX & set(targets.split(",")):
        command = engine_command(
            stage, "tensorrt", targets, directory=directory, like=like, changed=changed, unfit=unfit
        )
        return f"{command}, and --provider tensorrt in place of tensorrt-rtx, which does not run on {targets}"
    of_builder = [engine for engine in like if engine.builder == builder]
    wanted = set(targets.split(","))
    options: dict[str, int | str] = {}
    stages = {stage}
    for engine in [each for each in of_builder if wanted & set(each.targets)] or of_builder:
        options |= built_with(engine)
        stages.add(engine.stage)
    told = {
        name: value for name, value in (options | dict(changed or {})).items() if DEFAULTS.get(name) != value
    }
    # Full TensorRT builds on the device that runs the engine.
    targets = "current" if builder == "tensorrt" else targets
    decoder = " --decoder" if stages & {"decoder", "sampler"} else ""
    made = {"vision_encoder", "projector", *(("decoder",) if decoder else ())}
    checkpoint = " --checkpoint CHECKPOINT" if made & set(unfit) else ""
    return f"vitrail engine {directory} --with {builder} --targets {targets}{decoder}{checkpoint}" + "".join(
        f" {name} {value}" for name, value in told.items()
    )


def unfit(manifest: Manifest) -> frozenset[Stage]:
    """Stages whose graphs TensorRT does not take, for their precision or dialect: engines are made from the checkpoint."""
    found: set[Stage] = set()
    if manifest.vision.precision not in ("float32", "float16", "bfloat16"):
        found |= {"vision_encoder", "projector"}
    if manifest.decoder.dialect != "standard":
        found.add("decoder")
    return frozenset(found)


def built_with(engine: EngineRecord) -> dict[str, int | str]:
    """The options of the build that shaped an engine. Projector and decoder have no fp8 and int8 of their own."""
    if engine.stage == "decoder":
        chunk = engine.profile("prefill").inputs["inputs_embeds"].max[1]
        return {"--context": engine.capacity, "--slots": engine.slots, "--prefill-chunk": chunk}
    if engine.stage == "sampler":
        return {"--slots": engine.slots}
    if engine.stage == "projector":
        return {"--max-tiles": engine.max_tiles}
    calibrated = {"--pictures": "PICTURES"} if engine.precision in ("fp8", "int8") else {}
    return {"--max-tiles": engine.max_tiles, "--precision": engine.precision, **calibrated}
