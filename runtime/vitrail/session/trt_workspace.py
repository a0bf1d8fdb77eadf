"""What the engines of one session run in: a stream, one planned piece of device memory, and a runner for each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitrail.session.cuda_memory import Regions, region_bytes, require_memory
from vitrail.session.trt_runner import Run, Runner, Scratch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vitrail.session.cuda_memory import Port
    from vitrail.session.trt_engine import Choice, Engine, Machine

ACTIVATIONS = "activations"


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
        driver = self.driver = machine.driver
        ports = [port for need in needs.values() for port in need.ports]
        planned = {
            "KV cache": sum(resident_bytes.values()),
            "inputs and outputs": sum(region_bytes(ports).values()),
        }
        weights = {f"weights of {stage}": need.choice.weight_bytes for stage, need in needs.items()}
        require_memory(driver, {**weights, **planned}, cure=cure)
        self.engines = {stage: need.load() for stage, need in needs.items()}
        activation_bytes = max(engine.activation_bytes for engine in self.engines.values())
        require_memory(driver, {ACTIVATIONS: activation_bytes, **planned}, cure=cure)
        self.regions = Regions(driver, ports, {ACTIVATIONS: activation_bytes, **resident_bytes})
        scratch = Scratch(self.regions.address(ACTIVATIONS), activation_bytes)
        self._runners = {
            stage: Runner(engine, self.regions.stream, scratch, graphs=graphs)
            for stage, engine in self.engines.items()
        }

    def run(self, stage: str, run: Run, *, repeats: bool) -> None:
        """Queue a run; see Runner.queue."""
        self._runners[stage].queue(run, repeats=repeats)
