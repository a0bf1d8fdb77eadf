"""Device memory around onnxruntime's sessions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitrail.session.contract import element_type
from vitrail.session.cuda_memory import Regions, region_bytes, require_memory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vitrail.providers import Cpu, Cuda
    from vitrail.session.cuda_driver import Driver
    from vitrail.session.cuda_memory import Port

CURE = "take fewer slots, a smaller context or fewer tiles per run, or export with fp16 or int4"


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


def require_buffers(
    device: Device,
    ports: Sequence[Port],
    resident_bytes: Mapping[str, int],
    *,
    beside: Mapping[str, int] | None = None,
) -> None:
    """Raise OptionError where the GPU has not so much free. beside: what else is to be loaded, by its name."""
    passing = sum(region_bytes(ports).values())
    needs = {"KV cache": sum(resident_bytes.values()), "inputs and outputs": passing}
    require_memory(device.driver, {**(beside or {}), **needs}, cure=CURE)


class Buffers(Regions):
    """All memory of one session, allocated once. Raises OptionError where the GPU has not so much free.

    onnxruntime's sessions run on streams of their own, so `settle` stands between this one's and theirs.
    """

    def __init__(self, device: Device, ports: Sequence[Port], resident_bytes: Mapping[str, int]) -> None:
        require_buffers(device, ports, resident_bytes)
        super().__init__(device.driver, ports, resident_bytes)
        self.device = device
        self.settle()

    def settle(self) -> None:
        """Wait until all that was queued here has ended."""
        self.stream.wait()

    def place(self, name: str, shape: Sequence[int]) -> tuple[Any, ...]:
        """A region as the arguments of IOBinding's bind_input and bind_output."""
        return self.at(self.address(name), self.dtypes[name], shape)

    def at(self, address: int, dtype: str, shape: Sequence[int]) -> tuple[Any, ...]:
        return (self.device.name, self.device.id, element_type(dtype), tuple(shape), address)
