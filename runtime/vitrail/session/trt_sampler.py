"""Tokens drawn by an engine of their own (`vitrail_export.engine.sampler`), from the logits that a decoder's engine left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from vitrail.sample import Draw
from vitrail.session.cuda_memory import Port
from vitrail.session.trt_runner import Run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vitrail.session.cuda_driver import Array
    from vitrail.session.trt_workspace import Workspace

STAGE: Literal["sampler"] = "sampler"
OPTIONS = {
    "temperature": "float32",
    "top_k": "int64",
    "top_p": "float32",
    "min_p": "float32",
    "uniform": "float32",
}
RESULTS = {"token_ids": "int64", "exact": "bool"}
IDLE = Draw(temperature=1.0, top_k=1)
"""Of a row that nobody draws from."""


def options_of(draws: Sequence[Draw], vocab: int) -> dict[str, Array]:
    """OPTIONS of rows that are drawn from, each [len(draws)]."""
    given = {
        name: np.array([getattr(draw, name) for draw in draws], dtype) for name, dtype in OPTIONS.items()
    }
    return {**given, "top_k": np.minimum(given["top_k"], vocab)}


def sampler_ports(rows: int, vocab: int) -> tuple[Port, ...]:
    """The sampler's inputs and outputs; its logits are where the decoder's are."""
    passing = (Port(name, dtype, (rows,)) for name, dtype in (OPTIONS | RESULTS).items())
    return (Port("logits", "float32", (rows, vocab)), *passing)


class TrtSampler:
    """Draws from the region `logits`, float32 [rows, vocab], of a workspace that holds the engine. A number of rows that
    comes again is a CUDA graph.
    """

    def __init__(self, workspace: Workspace, *, vocab: int) -> None:
        self._workspace, self._vocab = workspace, vocab
        self._runs: dict[int, Run] = {}

    def queue(self, draws: Sequence[Draw]) -> None:
        """Draw a token for each of the first rows of the logits, none of them greedily."""
        for name, values in options_of(draws, self._vocab).items():
            self._workspace.regions.put(name, values)
        self._workspace.run(STAGE, self._run(len(draws)), repeats=True)

    def take(self, rows: int) -> tuple[Array, Array]:
        """token_ids int64 [rows] that were drawn, and exact bool [rows]: whether they are what `vitrail.sample` draws."""
        token_ids, exact = (self._workspace.regions.take(name, (rows,)) for name in RESULTS)
        return token_ids, exact

    def _run(self, rows: int) -> Run:
        if rows not in self._runs:
            names = ("logits", *OPTIONS, *RESULTS)
            shapes = {"logits": (rows, self._vocab), **dict.fromkeys(OPTIONS, (rows,))}
            addresses = {name: self._workspace.regions.address(name) for name in names}
            self._runs[rows] = Run(0, shapes, addresses)
        return self._runs[rows]
