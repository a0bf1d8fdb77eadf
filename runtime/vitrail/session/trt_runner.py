"""Runs of an engine on one stream: as they come, or as CUDA graphs where the same run comes again.

A graph is bound to the context, the shapes and the addresses that it was captured with (NVIDIA TensorRT documentation,
"CUDA Graphs"), so each one has a context of its own, which nothing changes afterwards. All contexts share the memory for
activations, since the runs of a stream follow one another.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vitrail.errors import ServerError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vitrail.session.cuda_driver import Graph, Stream
    from vitrail.session.trt_engine import Engine, Shape
    from vitrail.session.trt_library import Context, Loaded

GRAPHS_KEPT = 64

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, slots=True)
class Run:
    """A profile, every input's shape, and every input's and output's address. One that comes again is the same object."""

    profile: int
    shapes: Mapping[str, Shape]
    addresses: Mapping[str, int]


class Scratch(NamedTuple):
    """Memory for the activations of a run."""

    address: int
    size_bytes: int


@dataclass
class Bound:
    """A context, the run that it is bound to, and the run's graph, once there is one.

    `loaded` comes last: a context has to be gone before its engine and its kernels are.
    """

    context: Context
    run: Run | None
    graph: Graph | None
    loaded: Loaded


class Runner:
    """Queues runs of `engine` on `stream`. Used from one thread at a time.

    With graphs, a run that repeats is queued as it comes the first time; the second time it gets a context, which has to
    run once before TensorRT lets it be captured; from the third time on it is a graph. At most `graphs_kept` are kept.
    """

    def __init__(
        self,
        engine: Engine,
        stream: Stream,
        scratch: Scratch,
        *,
        graphs: bool,
        graphs_kept: int = GRAPHS_KEPT,
    ) -> None:
        self._engine, self._stream, self._scratch = engine, stream, scratch
        self._kept = graphs_kept if graphs else 0
        self._shared: dict[int, Bound] = {}
        self._recorded: OrderedDict[Run, Bound | None] = OrderedDict()

    def queue(self, run: Run, *, repeats: bool) -> None:
        """repeats: this very run is expected again. Raises ServerError."""
        if not (repeats and self._kept):
            self._queue_shared(run)
        elif run in self._recorded:
            self._queue_recorded(run)
        else:
            self._recorded[run] = None
            self._queue_shared(run)
        while len(self._recorded) > self._kept:
            self._recorded.popitem(last=False)

    def _queue_shared(self, run: Run) -> None:
        """In the profile's shared context, bound anew where the last run differs."""
        if run.profile not in self._shared:
            self._shared[run.profile] = self._new_context(graphs=False)
        bound = self._shared[run.profile]
        if bound.run is not run:
            self._bind(bound, run)
        self._execute(bound.context)

    def _queue_recorded(self, run: Run) -> None:
        self._recorded.move_to_end(run)
        bound = self._recorded[run]
        if bound is None:
            bound = self._new_context(graphs=True)
            self._bind(bound, run)
            self._execute(bound.context)
            self._recorded[run] = bound
        elif self._engine.library.captures_itself:
            self._execute(bound.context)
        else:
            bound.graph = bound.graph or self._capture(bound.context)
            bound.graph.launch()

    def _capture(self, context: Context) -> Graph:
        self._stream.begin_capture()
        try:
            self._execute(context)
            return self._stream.end_capture()
        except ServerError as error:
            self._abandon()
            provider = self._engine.library.builder
            raise ServerError(f"{error}; without CUDA graphs: --provider {provider},graphs=off") from error

    def _abandon(self) -> None:
        """End a capture that failed, so that the stream can be used again."""
        try:
            self._stream.end_capture()
        except ServerError as error:
            log.debug("the end of a failed capture: %s", error)

    def _new_context(self, *, graphs: bool) -> Bound:
        loaded = self._engine.loaded
        return Bound(loaded.context(graphs=graphs), None, None, loaded)

    def _bind(self, bound: Bound, run: Run) -> None:
        context, handle, bound.run = bound.context, self._stream.handle, None
        context.set_device_memory(*self._scratch)
        self._require(context.set_optimization_profile_async(run.profile, handle), "takes no profile")
        for name, shape in run.shapes.items():
            self._require(context.set_input_shape(name, shape), f"refuses {name} {list(shape)}")
        for name, address in run.addresses.items():
            self._require(context.set_tensor_address(name, address), f"refuses the address of {name}")
        bound.run = run

    def _execute(self, context: Context) -> None:
        self._require(context.execute_async_v3(self._stream.handle), "failed")

    def _require(self, done: bool, what: str) -> None:  # noqa: FBT001 - TensorRT's answer
        if not done:
            stage, library = self._engine.record.stage, self._engine.library
            raise ServerError(f"the engine of {stage} {what}: {library.last_error()}")
