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
    return most if openvino else min(most, _busy_tiles(vision))


def cpu_tiles_per_look(vision: VisionContract, most: int, *, openvino: bool) -> int:
    """How many of a picture's tiles go from model to model of a server at once, runs of `most` at least on OpenVINO.

    Their features lie in the shared memory of every model that they pass, which never shrinks: a picture's together are no
    faster than as many as keep the cores busy.
    """
    return max(most if openvino else 1, _busy_tiles(vision))


def _busy_tiles(vision: VisionContract) -> int:
    return max(1, _BUSY_FEATURES // (vision.tokens_per_tile * vision.feature_size))
