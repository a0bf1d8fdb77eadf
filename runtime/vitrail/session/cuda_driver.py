"""The CUDA driver by ctypes: libcuda.so.1 comes with every NVIDIA driver, so nothing more is installed to run engines.

Addresses and handles are ints. Functions, constants and structures: CUDA Driver API, cuda.h.
"""

from __future__ import annotations

import ctypes
import weakref
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from vitrail.errors import OptionError, ServerError

Array: TypeAlias = npt.NDArray[Any]
Bytes: TypeAlias = npt.NDArray[np.uint8]

LIBRARY = "libcuda.so.1"
COMPUTE_CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream
THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: threads may allocate while others capture
DEVICE_MEMORY = 2  # CU_MEMORYTYPE_DEVICE


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device. target: its compute capability as engines name it, sm_86; cuda: what its driver supports, (13, 0)."""

    name: str
    target: str
    cuda: tuple[int, int]


class Rows(NamedTuple):
    """So many rows of width_bytes, pitch_bytes apart."""

    rows: int
    width_bytes: int
    pitch_bytes: int


class Graph(Protocol):
    """What a stream captured."""

    def launch(self) -> None:
        """Queue it on its stream."""
        ...


class Stream(Protocol):
    """Work that is queued on a stream runs in order; `wait` ends when all of it has. handle: for other libraries."""

    handle: int

    def wait(self) -> None: ...
    def clear(self, address: int, size_bytes: int) -> None: ...
    def upload(self, target: int, source: Array) -> None: ...
    def download(self, target: Array, source: int) -> None: ...
    def copy_rows(self, target: int, source: int, rows: Rows) -> None:
        """On the device; both sides have the same pitch."""
        ...

    def begin_capture(self) -> None:
        """What is queued from now on is not run but kept, until end_capture."""
        ...

    def end_capture(self) -> Graph: ...


class Memory(Protocol):
    address: int
    size_bytes: int


class Driver(Protocol):
    """One GPU. What is allocated, opened or captured is given back when the object that stands for it is collected."""

    gpu: Gpu

    def activate(self) -> None:
        """Make this GPU the calling thread's own: first in every thread. It may then allocate while another one captures."""
        ...

    def memory_bytes(self) -> tuple[int, int]:
        """Free and total."""
        ...

    def allocate(self, size_bytes: int) -> Memory: ...
    def pin(self, size_bytes: int) -> Bytes:
        """Host memory that copies at the speed of the bus."""
        ...

    def open_stream(self) -> Stream: ...


class Copy2D(ctypes.Structure):
    """CUDA_MEMCPY2D."""

    _fields_ = (
        ("source_x", c_size_t),
        ("source_y", c_size_t),
        ("source_type", c_uint),
        ("source_host", c_void_p),
        ("source", c_uint64),
        ("source_array", c_void_p),
        ("source_pitch", c_size_t),
        ("target_x", c_size_t),
        ("target_y", c_size_t),
        ("target_type", c_uint),
        ("target_host", c_void_p),
        ("target", c_uint64),
        ("target_array", c_void_p),
        ("target_pitch", c_size_t),
        ("width", c_size_t),
        ("height", c_size_t),
    )


PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuThreadExchangeStreamCaptureMode": (POINTER(c_int),),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemsetD8Async": (c_uint64, c_ubyte, c_size_t, c_void_p),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuMemcpy2DAsync_v2": (POINTER(Copy2D), c_void_p),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_uint64),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
}


class LibCuda:
    """Driver of device `device_id`, in its primary context, which TensorRT uses, too.

    Raises OptionError where there is no driver or no such device; ServerError where the driver fails later.
    """

    def __init__(self, device_id: int, *, library: str = LIBRARY) -> None:
        self._calls = calls = Calls(_load(library))
        try:
            calls("cuInit", 0)
        except ServerError as error:
            raise OptionError(
                f"the NVIDIA driver finds no GPU that it can use ({error}); look at nvidia-smi, "
                f"in a container give --gpus all, or use --provider cpu"
            ) from error
        self._device = self._find(device_id)
        self.gpu = self._describe()
        calls.context = calls.new(c_void_p, "cuDevicePrimaryCtxRetain", self._device)
        self.activate()

    def activate(self) -> None:
        self._calls.activate()

    def leave(self) -> None:
        """Give the context back, and the device memory that it takes. Nothing else of this object works afterwards."""
        self._calls("cuDevicePrimaryCtxRelease_v2", self._device)

    def memory_bytes(self) -> tuple[int, int]:
        free, total = c_size_t(), c_size_t()
        self._calls("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value, total.value

    def allocate(self, size_bytes: int) -> Memory:
        return DeviceMemory(self._calls, size_bytes)

    def pin(self, size_bytes: int) -> Bytes:
        address = self._calls.new(c_void_p, "cuMemHostAlloc", size_bytes, 0)
        memory = (c_ubyte * size_bytes).from_address(address)
        self._calls.after(memory, "cuMemFreeHost", address)
        return np.ctypeslib.as_array(memory)

    def open_stream(self) -> Stream:
        return CudaStream(self._calls)

    def _find(self, device_id: int) -> int:
        count = self._calls.new(c_int, "cuDeviceGetCount")
        if device_id >= count:
            raise OptionError(f"GPU {device_id} was asked for; this machine has {count}, the first is 0")
        return self._calls.new(c_int, "cuDeviceGet", device_id)

    def _describe(self) -> Gpu:
        name = ctypes.create_string_buffer(256)
        self._calls("cuDeviceGetName", name, len(name), self._device)
        major, minor = (
            self._calls.new(c_int, "cuDeviceGetAttribute", each, self._device) for each in COMPUTE_CAPABILITY
        )
        version = self._calls.new(c_int, "cuDriverGetVersion")
        return Gpu(name.value.decode(), f"sm_{major}{minor}", (version // 1000, version % 1000 // 10))


class DeviceMemory:
    def __init__(self, calls: Calls, size_bytes: int) -> None:
        self.address = calls.new(c_uint64, "cuMemAlloc_v2", size_bytes)
        self.size_bytes = size_bytes
        calls.after(self, "cuMemFree_v2", self.address)


class CudaStream:
    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self.handle = calls.new(c_void_p, "cuStreamCreate", NON_BLOCKING)
        calls.after(self, "cuStreamDestroy_v2", self.handle)

    def wait(self) -> None:
        self._calls("cuStreamSynchronize", self.handle)

    def clear(self, address: int, size_bytes: int) -> None:
        self._calls("cuMemsetD8Async", address, 0, size_bytes, self.handle)

    def upload(self, target: int, source: Array) -> None:
        self._calls("cuMemcpyHtoDAsync_v2", target, source.ctypes.data, source.nbytes, self.handle)

    def download(self, target: Array, source: int) -> None:
        self._calls("cuMemcpyDtoHAsync_v2", target.ctypes.data, source, target.nbytes, self.handle)

    def copy_rows(self, target: int, source: int, rows: Rows) -> None:
        copy = Copy2D(
            source_type=DEVICE_MEMORY,
            source=source,
            source_pitch=rows.pitch_bytes,
            target_type=DEVICE_MEMORY,
            target=target,
            target_pitch=rows.pitch_bytes,
            width=rows.width_bytes,
            height=rows.rows,
        )
        self._calls("cuMemcpy2DAsync_v2", byref(copy), self.handle)

    def begin_capture(self) -> None:
        self._calls("cuStreamBeginCapture_v2", self.handle, THREAD_LOCAL)

    def end_capture(self) -> Graph:
        captured = c_void_p()
        self._calls("cuStreamEndCapture", self.handle, byref(captured))
        try:
            return CudaGraph(self._calls, captured, self)
        finally:
            self._calls("cuGraphDestroy", captured)


class CudaGraph:
    def __init__(self, calls: Calls, captured: c_void_p, stream: CudaStream) -> None:
        self._calls, self._stream = calls, stream
        self._handle = calls.new(c_void_p, "cuGraphInstantiateWithFlags", captured, 0)
        calls.after(self, "cuGraphExecDestroy", self._handle)

    def launch(self) -> None:
        self._calls("cuGraphLaunch", self._handle, self._stream.handle)


class Calls:
    """Calls of the library's functions, whose failures raise ServerError with the driver's own words."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self.context = 0

    def __call__(self, function: str, *arguments: Any) -> None:
        code = getattr(self._library, function)(*arguments)
        if code:
            raise ServerError(f"{function} failed: {self._meaning(code)}")

    def new(self, kind: Any, function: str, *arguments: Any) -> int:
        """What a function writes to its first argument."""
        result = kind()
        self(function, byref(result), *arguments)
        return int(result.value or 0)

    def activate(self) -> None:
        self("cuCtxSetCurrent", self.context)
        # onnxruntime captures for all threads (cudaStreamCaptureModeGlobal): without this, memory that another thread
        # allocates meanwhile ends both with an error.
        self("cuThreadExchangeStreamCaptureMode", byref(c_int(THREAD_LOCAL)))

    def after(self, owner: object, function: str, handle: int) -> None:
        """Call once `owner` is collected, in whichever thread. At exit the driver takes everything back itself."""
        weakref.finalize(owner, self._end, function, handle).atexit = False

    def _end(self, function: str, handle: int) -> None:
        self.activate()
        self(function, handle)

    def _meaning(self, code: int) -> str:
        texts = []
        for function in ("cuGetErrorString", "cuGetErrorName"):
            text = c_char_p()
            getattr(self._library, function)(code, byref(text))
            texts.append((text.value or b"unknown").decode())
        return f"{texts[0]} ({texts[1]}, {code})"


def _load(name: str) -> Any:
    try:
        library = ctypes.CDLL(name)
        for function, arguments in PROTOTYPES.items():
            getattr(library, function).argtypes = arguments
    except OSError as error:
        raise OptionError(
            f"there is no NVIDIA driver here ({error}); install one, in a container give --gpus all, "
            f"or use --provider cpu"
        ) from error
    except AttributeError as error:
        raise OptionError(
            f"the NVIDIA driver is too old ({error}); install driver 525 (CUDA 12.0) or newer"
        ) from error
    return library
