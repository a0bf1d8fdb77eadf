"""One execution of a batched model over many requests: their rows are joined, run once and parted again. Pure."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from vitrail.errors import ServerError, VitrailError

Array: TypeAlias = "npt.NDArray[Any]"
# A model's outputs, each with a row for every row of its input.
Outputs: TypeAlias = "tuple[Array, ...]"

FAILED = "the vision model failed on this request; the server's log tells why"

log = logging.getLogger(__name__)


def run_batch(
    arrays: Sequence[Array], *, check: Callable[[Array], None], run: Callable[[Array], Outputs]
) -> list[Outputs | VitrailError]:
    """`run` over the rows of all arrays at once: each array's own rows of the outputs, or its error.

    What `check` raises is its own array's error. Where the run fails, every array is run alone, so that only those
    that fail alone get an error.
    """
    faults = [_fault(array, check) for array in arrays]
    good = [array for array, fault in zip(arrays, faults, strict=True) if fault is None]
    results = iter(_together(good, run))
    return [next(results) if fault is None else fault for fault in faults]


def _fault(array: Array, check: Callable[[Array], None]) -> VitrailError | None:
    try:
        check(array)
    except VitrailError as error:
        return error
    return None


def _together(arrays: Sequence[Array], run: Callable[[Array], Outputs]) -> Sequence[Outputs | VitrailError]:
    if len(arrays) > 1:
        joined = _attempt(np.concatenate(arrays), run)
        if not isinstance(joined, VitrailError):
            places = list(accumulate(map(len, arrays)))[:-1]
            return list(zip(*(np.split(output, places) for output in joined), strict=True))
    return [_attempt(array, run) for array in arrays]


def _attempt(array: Array, run: Callable[[Array], Outputs]) -> Outputs | VitrailError:
    try:
        return run(array)
    except VitrailError as error:
        return error
    except Exception:
        log.exception("a run over %d rows failed", len(array))
        return ServerError(FAILED)
