"""How many tiles a processor gets at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitrail.manifest import VisionContract

_BUSY_FEATURES = 1 << 20  # keep a CPU's cores busy: one tile of a published model


def cpu_tiles_per_run(vision: VisionContract, most: int, *, openvino: bool) -> int:
    """How many tiles a CPU gets at once, of at most `most`.

    In int8 one, whose activations then depend on no neighbour. ONNX Runtime's own kernels get as many as keep the cores
    busy: more are no faster there, and each takes memory (docs/log.md).
    """
    if vision.precision == "int8":
        return 1
    enough = _BUSY_FEATURES // (vision.tokens_per_tile * vision.feature_size)
    return most if openvino else max(1, min(most, enough))
