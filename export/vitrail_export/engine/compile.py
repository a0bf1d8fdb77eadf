"""One graph file becomes one engine file: parse, profiles, build. The same for TensorRT and TensorRT for RTX."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from vitrail.errors import ExportError
from vitrail.manifest import EngineProfile
from vitrail_export.engine.builders import Builder
from vitrail_export.engine.timing import read_cache, write_cache

Progress: TypeAlias = Callable[[str, float], None]
"""(what the builder is at, how much of the build is done, 0 to 1)"""
UNUSED = "Unused Input"


@dataclass(slots=True)
class Journal:
    """What the builder logs: kept where it is an error or tells of an input that it dropped."""

    trt: Any
    lines: list[str] = field(default_factory=list)

    def logger(self) -> Any:
        trt, lines = self.trt, self.lines

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity <= trt.ILogger.ERROR or UNUSED in message:
                    lines.append(message)

        return Logger()

    def unused(self) -> list[str]:
        return [line for line in self.lines if UNUSED in line]

    def errors(self) -> str:
        """Without what it says of a missing driver, which no build for named targets needs."""
        told = [line for line in self.lines if "cudaError 35" not in line] or self.lines
        return "; ".join(dict.fromkeys(" ".join(line.split()) for line in told))[:1500]


@dataclass(slots=True)
class Phases:
    """Nested phases of a build as one fraction. cancelled: an interrupt came, and the build is to end."""

    report: Progress
    open: dict[str, tuple[int, int]] = field(default_factory=dict)
    cancelled: bool = False

    def start(self, name: str, steps: int) -> None:
        self.open[name] = (0, max(steps, 1))
        self._report()

    def step(self, name: str, step: int) -> None:
        if name in self.open:
            self.open[name] = (step + 1, self.open[name][1])
            self._report()

    def finish(self, name: str) -> None:
        self.open.pop(name, None)

    def fraction(self) -> float:
        """An inner phase is part of the current step of the one around it."""
        done, share = 0.0, 1.0
        for finished, steps in self.open.values():
            share /= steps
            done += min(finished, steps) * share
        return min(done, 1.0)

    def _report(self) -> None:
        try:
            self.report(next(reversed(self.open), ""), self.fraction())
        except KeyboardInterrupt:  # it must not cross the builder's own code
            self.cancelled = True

    def monitor(self, trt: Any) -> Any:
        phases = self

        class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)

            def phase_start(self, phase_name: str, _parent: str, num_steps: int) -> None:
                phases.start(phase_name, num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                phases.step(phase_name, step)
                return not phases.cancelled

            def phase_finish(self, phase_name: str) -> None:
                phases.finish(phase_name)

        return Monitor()


def compile_graph(
    builder: Builder,
    graph: Path,
    engine: Path,
    *,
    targets: tuple[str, ...],
    profiles: tuple[EngineProfile, ...],
    timing: Path,
    progress: Progress = lambda _phase, _done: None,
) -> None:
    """Write `engine`. Raises ExportError where a node is unsupported, an input is dropped or the build fails,
    ArtifactError for a damaged timing cache.
    """
    trt = builder.trt
    journal, phases = Journal(trt), Phases(progress)
    logger, monitor = journal.logger(), phases.monitor(trt)
    maker = trt.Builder(logger)
    network = maker.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parse(trt, network, graph, logger, journal)
    allow_unfused_attention(trt, network)
    config = maker.create_builder_config()
    config.progress_monitor = monitor
    builder.configure(config, targets)
    for profile in profiles:
        add_profile(maker, config, profile)
    if builder.has_timing_cache:
        _load_timing(config, timing)
    plan = maker.build_serialized_network(network, config)
    if phases.cancelled:
        raise KeyboardInterrupt
    _refuse_unused(graph, journal.unused())
    if plan is None:
        raise ExportError(
            f"{builder.name} {builder.version} built no engine of {graph.stem}: {journal.errors()}"
        )
    _write(engine, plan)
    if builder.has_timing_cache:
        write_cache(timing, bytes(config.get_timing_cache().serialize()))


def parse(trt: Any, network: Any, graph: Path, logger: Any, journal: Journal) -> None:
    """Raises ExportError naming the nodes that the builder does not take, and inputs that it does not use."""
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        refused = (parser.get_error(i) for i in range(parser.num_errors))
        nodes = ", ".join(dict.fromkeys(f"{each.node_operator()} ({each.node_name()})" for each in refused))
        raise ExportError(f"the builder's parser refuses {nodes or graph.stem}: {journal.errors()}")
    _refuse_unused(graph, [*journal.unused(), *(f"{UNUSED}: {name}" for name in _unconnected(network))])


def allow_unfused_attention(trt: Any, network: Any) -> int:
    """Let every attention fall back to several kernels on a GPU that has no fused one; how many there are.

    The parser leaves them to one fused kernel or none.
    """
    found = 0
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type.name == "ATTENTION_INPUT":
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True
            found += 1
    return found


def _unconnected(network: Any) -> Iterator[str]:
    """Inputs of the network that no layer reads: a parser may drop what it has no use for."""
    read = set()
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        inputs = (layer.get_input(k) for k in range(layer.num_inputs))
        read |= {each.name for each in inputs if each is not None}
    names = (network.get_input(i).name for i in range(network.num_inputs))
    return (name for name in names if name not in read)


def _refuse_unused(graph: Path, unused: list[str]) -> None:
    if unused:
        raise ExportError(
            f"the builder drops an input of {graph.stem}, so its engine would compute something else: "
            f"{'; '.join(dict.fromkeys(unused))}"
        )


def add_profile(maker: Any, config: Any, profile: EngineProfile) -> None:
    made = maker.create_optimization_profile()
    for name, shapes in profile.inputs.items():
        made.set_shape(name, shapes.min, shapes.opt, shapes.max)
    if config.add_optimization_profile(made) < 0:
        raise ExportError(f"the builder refuses the profile '{profile.name}'")


def _load_timing(config: Any, timing: Path) -> None:
    cache = config.create_timing_cache(read_cache(timing))
    if cache is None or not config.set_timing_cache(cache, False):
        raise ExportError(f"the builder refuses the timing cache '{timing}'; remove it: rm '{timing}'")


def _write(engine: Path, plan: Any) -> None:
    partial = engine.with_name(engine.name + ".partial")
    with partial.open("wb") as file:
        file.write(plan)
    partial.replace(engine)
