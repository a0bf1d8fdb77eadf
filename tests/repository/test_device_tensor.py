"""Tensors that the python backend hands over on a GPU, by stand-ins in host memory."""

from collections import Counter

import numpy as np
import pytest
from tests.runtime.engine_fakes import HostDriver

from vitrail.errors import ServerError
from vitrail.triton.device_tensor import place_of, to_host


class OnDevice:
    """A python-backend tensor that is not in host memory, as far as it tells."""

    def __init__(self, array):
        self.array, self.asked = array, Counter()

    def is_cpu(self):
        return False

    def as_numpy(self):
        raise AssertionError("a tensor on a GPU has no array")

    def to_dlpack(self):
        self.asked["to_dlpack"] += 1
        return self.array.__dlpack__()


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8", "int32", "float64"])
def test_a_capsule_tells_where_a_tensor_lies(dtype):
    array = np.arange(24, dtype=dtype).reshape(2, 3, 4)
    place = place_of(array.__dlpack__())
    assert (place.address, place.shape, place.dtype) == (array.ctypes.data, (2, 3, 4), array.dtype)
    part = place_of(array[1:].__dlpack__())
    assert (part.address, part.shape) == (array[1:].ctypes.data, (1, 3, 4))


def test_a_tensor_on_the_gpu_is_copied_to_the_host():
    array = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float16)
    tensor = OnDevice(array)
    copied = to_host(tensor, driver=lambda _: HostDriver())
    assert tensor.asked["to_dlpack"] == 1
    assert copied.ctypes.data != array.ctypes.data
    np.testing.assert_array_equal(copied, array)
    empty = to_host(OnDevice(np.empty((0, 5), np.float32)), driver=lambda _: pytest.fail("nothing to copy"))
    assert empty.shape == (0, 5)


def test_a_tensor_that_is_not_in_c_order_is_refused():
    with pytest.raises(ServerError, match="not in C order"):
        place_of(np.arange(6.0).reshape(2, 3).T.__dlpack__())
