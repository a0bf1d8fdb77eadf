"""Tokens drawn where the logits are, by the graphs of `vitrail_export.sampling`: ids cross the bus, logits do not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vitrail.sample import Draw
from vitrail.session.cuda_memory import Port
from vitrail.session.inference import open_session, run_bound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vitrail.core import Int64
    from vitrail.session.cuda_buffers import Buffers, Device
    from vitrail.session.cuda_driver import Array

GREEDY = Draw()
OPTIONS = {
    "temperature": "float32",
    "top_k": "int64",
    "top_p": "float64",
    "min_p": "float32",
    "uniform": "float64",
}
RESULTS = {"token_ids": "int64", "exact": "bool"}


class Drawn(NamedTuple):
    """token_ids int64 [rows]; exact bool [rows]: whether the id is what `vitrail.sample` draws, else it is nothing."""

    token_ids: Int64
    exact: Array


class DeviceSampler:
    """Draws from the rows of the region `logits`, float32 [rows, vocab], of a session's buffers."""

    def __init__(self, device: Device, *, vocab: int) -> None:
        self._vocab = vocab
        self._sessions = {
            name: open_session(
                Path(__file__).with_name(f"{name}.onnx"), device.provider, graphs=device.graphs
            )
            for name in ("greedy", "sampler")
        }
        self._bindings: dict[tuple[str, int], Any] = {}

    @staticmethod
    def ports(rows: int) -> list[Port]:
        """What the buffers must have beside the logits."""
        return [Port(name, dtype, (rows,)) for name, dtype in (OPTIONS | RESULTS).items()]

    def draw(self, buffers: Buffers, draws: Sequence[Draw]) -> Drawn:
        """One token for each of the first len(draws) rows. A number of rows that comes again is a CUDA graph."""
        rows = len(draws)
        name = "greedy" if all(each.temperature == 0 for each in draws) else "sampler"
        if name == "sampler":
            self._put(buffers, draws)
        key = (name, rows)
        if key not in self._bindings:
            self._bindings[key] = self._bind(buffers, name, rows)
        run_bound(self._sessions[name], self._bindings[key], "the sampler", graph=rows)
        ids, exact = (buffers.take(result, (rows,)).copy() for result in RESULTS)
        return Drawn(ids, exact)

    def _put(self, buffers: Buffers, draws: Sequence[Draw]) -> None:
        for option, dtype in OPTIONS.items():
            values = np.array([getattr(draw, option) for draw in draws], dtype)
            buffers.put(option, np.minimum(values, self._vocab) if option == "top_k" else values)
        buffers.settle()

    def _bind(self, buffers: Buffers, name: str, rows: int) -> Any:
        binding = self._sessions[name].io_binding()
        binding.bind_input("logits", *buffers.place("logits", (rows, self._vocab)))
        for option in OPTIONS if name == "sampler" else ():
            binding.bind_input(option, *buffers.place(option, (rows,)))
        for result in RESULTS:
            binding.bind_output(result, *buffers.place(result, (rows,)))
        return binding
