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
    from vitrail.session.trt_library import Context

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
class Recorded:
    """A context that is bound to one run; its graph, once there is one."""

    context: Context
    graph: Graph | None = None


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
        self._shared: dict[int, tuple[Context, Run]] = {}
        self._recorded: OrderedDict[Run, Recorded | None] = OrderedDict()

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
        context, last = self._shared.pop(run.profile, (None, None))
        if context is None:
            context = self._new_context(graphs=False)
        if last is not run:
            self._bind(context, run)
        self._shared[run.profile] = (context, run)
        self._execute(context)

    def _queue_recorded(self, run: Run) -> None:
        self._recorded.move_to_end(run)
        recorded = self._recorded[run]
        if recorded is None:
            recorded = self._recorded[run] = Recorded(self._new_context(graphs=True))
            self._bind(recorded.context, run)
            self._execute(recorded.context)
        elif self._engine.library.captures_itself:
            self._execute(recorded.context)
        else:
            if recorded.graph is None:
                recorded.graph = self._capture(recorded.context)
            recorded.graph.launch()

    def _capture(self, context: Context) -> Graph:
        self._stream.begin_capture()
        try:
            self._execute(context)
        except ServerError:
            self._abandon()
            raise
        return self._stream.end_capture()

    def _abandon(self) -> None:
        """End a capture that failed, so that the stream can be used again."""
        try:
            self._stream.end_capture()
        except ServerError as error:
            log.debug("the end of a failed capture: %s", error)

    def _new_context(self, *, graphs: bool) -> Context:
        return self._engine.loaded.context(graphs=graphs)

    def _bind(self, context: Context, run: Run) -> None:
        context.set_device_memory(*self._scratch)
        self._require(
            context.set_optimization_profile_async(run.profile, self._stream.handle), "takes no profile"
        )
        for name, shape in run.shapes.items():
            self._require(context.set_input_shape(name, shape), f"refuses {name} {list(shape)}")
        for name, address in run.addresses.items():
            self._require(context.set_tensor_address(name, address), f"refuses the address of {name}")

    def _execute(self, context: Context) -> None:
        self._require(context.execute_async_v3(self._stream.handle), "failed")

    def _require(self, done: bool, what: str) -> None:  # noqa: FBT001 - TensorRT's answer
        if not done:
            stage, library = self._engine.record.stage, self._engine.library
            raise ServerError(f"the engine of {stage} {what}: {library.last_error()}")
