"""What the engines of one session run in: a stream, one planned piece of device memory, and the way in and out of it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vitrail.session.cuda_memory import Arena, Staging, require_memory
from vitrail.session.trt_runner import Run, Runner, Scratch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vitrail.session.cuda_driver import Array
    from vitrail.session.trt_engine import Choice, Engine, Machine, Shape

ACTIVATIONS = "activations"
TWO_BYTES = frozenset({"float16", "bfloat16"})


class Port(NamedTuple):
    """An input or output: its name, its dtype and its largest shape. Ports of one name share their memory."""

    name: str
    dtype: str
    most: Shape

    @property
    def size_bytes(self) -> int:
        return prod(self.most) * (2 if self.dtype in TWO_BYTES else np.dtype(self.dtype).itemsize)


@dataclass(frozen=True)
class Need:
    """An engine to load: its ports that pass through the host, and tensors that stay on the device by their dtypes."""

    choice: Choice
    ports: tuple[Port, ...]
    resident: Mapping[str, str]

    def load(self) -> Engine:
        return self.choice.load({port.name: port.dtype for port in self.ports} | dict(self.resident))


class Workspace:
    """Loads engines and allocates once all that they need.

    Raises OptionError where the GPU has not the memory: before weights are loaded from what is known then, after that
    from what the engines say of their activations. resident_bytes: regions for tensors that stay on the device.
    """

    def __init__(
        self,
        machine: Machine,
        needs: Mapping[str, Need],
        *,
        resident_bytes: Mapping[str, int],
        graphs: bool,
        cure: str,
    ) -> None:
        self.driver = machine.driver
        ports = [port for need in needs.values() for port in need.ports]
        passing: dict[str, int] = {}
        for port in ports:
            passing[port.name] = max(port.size_bytes, passing.get(port.name, 0))
        planned = {"KV cache": sum(resident_bytes.values()), "inputs and outputs": sum(passing.values())}
        weights = {f"weights of {stage}": need.choice.weight_bytes for stage, need in needs.items()}
        require_memory(self.driver, {**weights, **planned}, cure=cure)
        engines = {stage: need.load() for stage, need in needs.items()}
        activation_bytes = max(engine.activation_bytes for engine in engines.values())
        require_memory(self.driver, {ACTIVATIONS: activation_bytes, **planned}, cure=cure)
        self.stream = self.driver.open_stream()
        sizes = {ACTIVATIONS: activation_bytes, **passing, **resident_bytes}
        self._arena = Arena(self.driver, sizes, stream=self.stream)
        self._staging = Staging(self.driver, passing)
        self._dtypes = {port.name: port.dtype for port in ports}
        scratch = Scratch(self.address(ACTIVATIONS), activation_bytes)
        self.engines = engines
        self._runners = {
            stage: Runner(engine, self.stream, scratch, graphs=graphs) for stage, engine in engines.items()
        }

    def address(self, name: str) -> int:
        return self._arena.address[name]

    def put(self, name: str, array: Array) -> None:
        """Queue an input's way to the device. The last run must have ended, or its own input has changed."""
        staged = self._staging.array(name, array.shape, self._dtypes[name])
        staged[...] = array
        self.stream.upload(self.address(name), staged)

    def run(self, stage: str, run: Run, *, repeats: bool) -> None:
        self._runners[stage].queue(run, repeats=repeats)

    def take(self, name: str, shape: Shape, *, first_row: int = 0) -> Array:
        """Rows of an output from first_row on, once all that is queued has ended; a view until the next `take`."""
        staged = self._staging.array(name, shape, self._dtypes[name])
        row_bytes = prod(shape[1:]) * staged.itemsize
        if staged.size:
            self.stream.download(staged, self.address(name) + first_row * row_bytes)
        self.stream.wait()
        return staged
