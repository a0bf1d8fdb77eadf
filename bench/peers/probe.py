"""What the machine can do at this moment: its matrix rate in bf16 and its reading bandwidth, each within a fraction of
a second. Between minutes, a virtual machine's AMX rate moves by three.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

MATRIX = (1025, 1024, 4096)
"""Rows, inner, columns: the first product of a tile's MLP."""
READ_BYTES = 256 << 20


class Probe:
    """matrix_s and read_s: how long each is measured."""

    def __init__(self, *, threads: int, matrix_s: float = 0.35, read_s: float = 0.15) -> None:
        torch.set_num_threads(threads)
        rows, inner, columns = MATRIX
        self._left = torch.randn(rows, inner, dtype=torch.bfloat16)
        self._linear = torch.nn.Linear(inner, columns, bias=False, dtype=torch.bfloat16)
        self._memory = torch.ones(READ_BYTES // 8, dtype=torch.int64)
        self._matrix_s, self._read_s = matrix_s, read_s

    @torch.inference_mode()
    def __call__(self) -> tuple[float, float]:
        """(TFLOPS, GB/s), and the probe's threads asleep again."""
        rows, inner, columns = MATRIX
        products = _per_second(lambda: self._linear(self._left), self._matrix_s)
        reads = _per_second(self._memory.sum, self._read_s)
        time.sleep(0.02)
        return 2e-12 * rows * inner * columns * products, 1e-9 * READ_BYTES * reads


def _per_second(action: Callable[[], object], seconds: float) -> float:
    """Of the faster half: what the machine can, not what else it did."""
    taken, began_s = [], time.perf_counter()
    while time.perf_counter() - began_s < seconds or len(taken) < 3:
        start_s = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start_s)
    fast = sorted(taken)[: max(1, len(taken) // 2)]
    return len(fast) / sum(fast)
