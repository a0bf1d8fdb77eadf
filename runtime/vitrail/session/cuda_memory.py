"""Device memory of a session: planned as named regions, checked against what is free, allocated once."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vitrail.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from vitrail.session.cuda_driver import Array, Driver, Stream

ALIGNMENT = 256  # TensorRT asks it of the memory for activations; rows of a cache keep it where they can


def require_memory(driver: Driver, needs_bytes: Mapping[str, int], *, cure: str) -> None:
    """Raise OptionError, naming every part of the need, where the GPU has less than that free."""
    free, total = driver.memory_bytes()
    needed = sum(needs_bytes.values())
    if needed > free:
        parts = ", ".join(f"{name} {in_words(size)}" for name, size in needs_bytes.items() if size)
        raise OptionError(
            f"{in_words(needed)} of GPU memory are needed ({parts}), but {in_words(free)} of {in_words(total)} "
            f"are free on {driver.gpu.name}; {cure}"
        )


def in_words(size_bytes: int) -> str:
    unit, name = (1 << 30, "GiB") if size_bytes >= 1 << 30 else (1 << 20, "MiB")
    return f"{size_bytes / unit:.2f} {name}"


def offsets(sizes_bytes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Where each region begins, aligned, and the size of all."""
    places, end = {}, 0
    for name, size in sizes_bytes.items():
        places[name] = end
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return places, end


class Port(NamedTuple):
    """A tensor that passes through the host: its name, dtype and largest shape. Ports of one name share their memory."""

    name: str
    dtype: str
    most: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return prod(self.most) * np.dtype(self.dtype).itemsize


def region_bytes(ports: Sequence[Port]) -> dict[str, int]:
    """By name, what the largest port of that name takes."""
    sizes: dict[str, int] = {}
    for port in ports:
        sizes[port.name] = max(port.size_bytes, sizes.get(port.name, 0))
    return sizes


class Arena:
    """One zeroed allocation with named regions.

    Zeroed, since attention multiplies what was never written by zero, which leaves no NaN only where there is none.
    """

    def __init__(self, driver: Driver, sizes_bytes: Mapping[str, int], *, stream: Stream) -> None:
        places, self.size_bytes = offsets(sizes_bytes)
        self._memory = driver.allocate(max(self.size_bytes, ALIGNMENT))
        self.address = {name: self._memory.address + place for name, place in places.items()}
        stream.clear(self._memory.address, self.size_bytes)


class Staging:
    """Pinned host memory with named regions, through which inputs and outputs pass."""

    def __init__(self, driver: Driver, sizes_bytes: Mapping[str, int]) -> None:
        self._places, size = offsets(sizes_bytes)
        self._memory = driver.pin(max(size, ALIGNMENT))

    def array(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """The beginning of a region as an array; a view that the next call for this region shares."""
        size = prod(shape) * np.dtype(dtype).itemsize
        start = self._places[name]
        view: Array = self._memory[start : start + size].view(dtype).reshape(shape)
        return view


class Regions:
    """All memory of one session, allocated once: of ports, which pass through the host, and of what stays on the device."""

    def __init__(self, driver: Driver, ports: Sequence[Port], resident_bytes: Mapping[str, int]) -> None:
        passing = region_bytes(ports)
        self.driver, self.stream = driver, driver.open_stream()
        self.dtypes = {port.name: port.dtype for port in ports}
        self._arena = Arena(driver, {**passing, **resident_bytes}, stream=self.stream)
        self._staging = Staging(driver, passing)

    def address(self, name: str) -> int:
        return self._arena.address[name]

    def put(self, name: str, array: Array) -> None:
        """Queue an input's way to the beginning of its region. What was put there before must have arrived."""
        staged = self._staging.array(name, array.shape, self.dtypes[name])
        staged[...] = array
        if staged.size:
            self.stream.upload(self.address(name), staged)

    def take(self, name: str, shape: tuple[int, ...], *, first_row: int = 0) -> Array:
        """Rows of an output from first_row on, once all that is queued has ended; a view until the next `take` of it."""
        staged = self._staging.array(name, shape, self.dtypes[name])
        if staged.size:
            row_bytes = prod(shape[1:]) * staged.itemsize
            self.stream.download(staged, self.address(name) + first_row * row_bytes)
        self.stream.wait()
        return staged
