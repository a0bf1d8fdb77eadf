"""One stage's engine: chosen from the manifest, checked against it and against the machine, loaded.

What can be refused before its weights are loaded is refused then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from vitrail.engine_files import engine_file
from vitrail.errors import ArtifactError
from vitrail.session.trt_library import dtype_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vitrail.manifest import EngineProfile, EngineRecord, EngineStage, Manifest
    from vitrail.session.cuda_driver import Driver
    from vitrail.session.trt_library import Library, Loaded

Shape: TypeAlias = "tuple[int, ...]"


@dataclass(frozen=True)
class Machine:
    """What engines run on: a GPU and a TensorRT library."""

    driver: Driver
    library: Library


@dataclass(frozen=True)
class Engine:
    """A loaded engine with its record."""

    record: EngineRecord
    loaded: Loaded
    library: Library

    def profile(self, name: str) -> int:
        return [each.name for each in self.record.profiles].index(name)

    @property
    def activation_bytes(self) -> int:
        """Device memory of one run, whichever profile it uses."""
        sizes = map(self.loaded.plan.get_device_memory_size_for_profile_v2, range(len(self.record.profiles)))
        return max(sizes)


@dataclass(frozen=True)
class Choice:
    """An engine that fits the machine, not loaded yet."""

    record: EngineRecord
    directory: Path
    manifest: Manifest
    machine: Machine

    @property
    def weight_bytes(self) -> int:
        """An engine's file is its weights and little else."""
        return self.manifest.artifacts[self.record.artifact].size_bytes

    @property
    def cure(self) -> str:
        return f"build it again with: {self.manifest.rebuild(self.record, self.directory)}"

    def load(self, dtypes: Mapping[str, str]) -> Engine:
        """With its inputs and outputs checked: exactly these names and dtypes. Raises ArtifactError."""
        library = self.machine.library
        loaded = library.read(engine_file(self.manifest, self.record, self.directory), cure=self.cure)
        engine = Engine(self.record, loaded, library)
        _check_tensors(engine, dtypes, self.cure)
        _check_profiles(engine, self.cure)
        return engine


def choose(directory: Path, manifest: Manifest, stage: EngineStage, machine: Machine) -> Choice:
    """The manifest's engine of a stage for this GPU and this TensorRT. Raises ArtifactError where there is none."""
    record = manifest.engine(
        stage,
        machine.library.builder,
        machine.driver.gpu.target,
        builder_version=machine.library.version,
        directory=directory,
    )
    return Choice(record, directory, manifest, machine)


def fits(profile: EngineProfile, shapes: Mapping[str, Shape]) -> bool:
    """Whether every input's shape lies within the profile."""
    return all(
        len(shape) == len(profile.inputs[name].max)
        and all(
            low <= size <= high
            for low, size, high in zip(profile.inputs[name].min, shape, profile.inputs[name].max, strict=True)
        )
        for name, shape in shapes.items()
    )


def _check_tensors(engine: Engine, wanted: Mapping[str, str], cure: str) -> None:
    plan = engine.loaded.plan
    names = [plan.get_tensor_name(i) for i in range(plan.num_io_tensors)]
    found = {name: dtype_of(plan, name) for name in names}
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise ArtifactError(
                f"the manifest does not describe the engine of {engine.record.stage}: '{name}' should be "
                f"{wanted.get(name, 'absent')}, in the engine it is {found.get(name, 'absent')}; {cure}"
            )


def _check_profiles(engine: Engine, cure: str) -> None:
    plan, stage = engine.loaded.plan, engine.record.stage
    if plan.num_optimization_profiles != len(engine.record.profiles):
        raise ArtifactError(
            f"the engine of {stage} has {plan.num_optimization_profiles} profiles, "
            f"its record {len(engine.record.profiles)}; {cure}"
        )
    for index, profile in enumerate(engine.record.profiles):
        for name, shapes in profile.inputs.items():
            found = [tuple(shape) for shape in plan.get_tensor_profile_shape(name, index)]
            if found != [shapes.min, shapes.opt, shapes.max]:
                raise ArtifactError(
                    f"profile '{profile.name}' of the engine of {stage} takes '{name}' {found}, "
                    f"its record says {[shapes.min, shapes.opt, shapes.max]}; {cure}"
                )
