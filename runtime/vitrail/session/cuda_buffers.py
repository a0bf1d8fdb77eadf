"""Device memory around onnxruntime's sessions: regions that pass through the host, and regions that stay on the device."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vitrail.session.cuda_memory import Arena, Staging, require_memory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vitrail.providers import Cpu, Cuda
    from vitrail.session.cuda_driver import Array, Driver, Stream

CURE = "take fewer slots, a smaller context or fewer tiles per run, or export with fp16 or int4"


class Port(NamedTuple):
    """A tensor that passes through the host: its name, dtype and largest shape."""

    name: str
    dtype: str
    most: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return prod(self.most) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Device:
    """What a session computes on: the provider, the driver of its memory, and whether decode steps become graphs."""

    provider: Cpu | Cuda
    driver: Driver
    graphs: bool
    name: str = "cuda"

    @property
    def id(self) -> int:
        return int(getattr(self.provider, "device_id", 0))


class Buffers:
    """All memory of one session, allocated once. Raises OptionError where the GPU has not so much free.

    onnxruntime's sessions run on streams of their own, so `settle` stands between this one's and theirs.
    """

    def __init__(self, device: Device, ports: Sequence[Port], resident_bytes: Mapping[str, int]) -> None:
        self.device = device
        self._ports = {port.name: port for port in ports}
        passing = {port.name: port.size_bytes for port in ports}
        needs = {"KV cache": sum(resident_bytes.values()), "inputs and outputs": sum(passing.values())}
        require_memory(device.driver, needs, cure=CURE)
        self._stream: Stream = device.driver.open_stream()
        self._arena = Arena(device.driver, {**passing, **resident_bytes}, stream=self._stream)
        self._staging = Staging(device.driver, passing)
        self.settle()

    @property
    def stream(self) -> Stream:
        return self._stream

    def address(self, name: str) -> int:
        return self._arena.address[name]

    def put(self, name: str, array: Array) -> None:
        """Queue an input's way to the beginning of its region."""
        staged = self._staging.array(name, array.shape, self._ports[name].dtype)
        staged[...] = array
        if staged.size:
            self._stream.upload(self.address(name), staged)

    def take(self, name: str, shape: tuple[int, ...], *, first_row: int = 0) -> Array:
        """Rows of an output from first_row on; a view until the next `take` of this name."""
        staged = self._staging.array(name, shape, self._ports[name].dtype)
        if staged.size:
            row_bytes = prod(shape[1:]) * staged.itemsize
            self._stream.download(staged, self.address(name) + first_row * row_bytes)
        self.settle()
        return staged

    def settle(self) -> None:
        """Wait until all that was queued here has ended."""
        self._stream.wait()

    def place(self, name: str, shape: Sequence[int]) -> tuple[Any, ...]:
        """A region as the arguments of IOBinding's bind_input and bind_output."""
        return self.at(self.address(name), self._ports[name].dtype, shape)

    def at(self, address: int, dtype: str, shape: Sequence[int]) -> tuple[Any, ...]:
        return (self.device.name, self.device.id, np.dtype(dtype).type, tuple(shape), address)
