"""Tensors that the python backend hands over on a GPU, copied to the host. No array library is needed.

Layout: DLPack's dlpack.h (DLManagedTensor, the form without versions, in a capsule named "dltensor").
"""

from __future__ import annotations

import ctypes
from ctypes import (
    POINTER,
    Structure,
    c_char_p,
    c_int32,
    c_int64,
    c_uint8,
    c_uint16,
    c_uint64,
    c_void_p,
    py_object,
)
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from vitrail.errors import ServerError
from vitrail.session.cuda_driver import LibCuda

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from vitrail.session.cuda_driver import Driver

_KINDS = {0: "i", 1: "u", 2: "f"}  # DLDataTypeCode
_get_pointer = ctypes.PYFUNCTYPE(c_void_p, py_object, c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))


class _Tensor(Structure):
    """DLTensor, which DLManagedTensor begins with."""

    _fields_ = (
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("kind", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    )


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies, in C order."""

    address: int
    device_id: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def place_of(capsule: Any) -> Place:
    """What a DLPack capsule describes; the capsule stays the tensor's owner. Raises ServerError for one not in C order."""
    tensor = _Tensor.from_address(_get_pointer(capsule, b"dltensor"))
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    if tensor.kind not in _KINDS or tensor.lanes != 1:
        raise ServerError(f"a tensor of DLPack kind {tensor.kind} with {tensor.lanes} lanes is none of ours")
    dtype = np.dtype(f"{_KINDS[tensor.kind]}{tensor.bits // 8}")
    strides = tuple(tensor.strides[axis] for axis in range(tensor.ndim)) if tensor.strides else None
    if strides is not None and not _is_c_order(shape, strides):
        raise ServerError(f"a tensor {list(shape)} with strides {list(strides)} is not in C order")
    return Place((tensor.data or 0) + tensor.byte_offset, tensor.device_id, shape, dtype)


def _is_c_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


@cache
def _driver(device_id: int) -> Driver:
    return LibCuda(device_id)


def to_host(tensor: Any, *, driver: Callable[[int], Driver] = _driver) -> npt.NDArray[Any]:
    """A copy of a python-backend tensor, wherever it lies. May be called from any thread."""
    if tensor.is_cpu():
        return np.array(tensor.as_numpy())
    capsule = tensor.to_dlpack()
    place = place_of(capsule)
    copied = np.empty(place.shape, place.dtype)
    if copied.size:
        device = driver(place.device_id)
        device.activate()
        stream = device.open_stream()
        stream.download(copied, place.address)
        stream.wait()
    del capsule
    return copied
