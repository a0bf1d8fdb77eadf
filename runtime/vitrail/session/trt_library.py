"""TensorRT or TensorRT for RTX, as installed: loads engines and makes contexts. Where the two differ, they differ here.

Both share one Python API (names below are TensorRT's). For RTX, kernels are compiled as contexts are made, into a cache
that contexts of an engine share, and it captures CUDA graphs itself, once the kernels of a shape are compiled.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import mmap
import re
from importlib.metadata import distributions
from typing import TYPE_CHECKING, Any, Protocol

from vitrail.errors import ArtifactError, OptionError, ServerError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vitrail.manifest import EngineBuilder
    from vitrail.session.cuda_driver import Gpu

PACKAGES: dict[EngineBuilder, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
INSTALL: dict[EngineBuilder, str] = {
    "tensorrt": "JetPack and NVIDIA's TensorRT containers have it; elsewhere: pip install tensorrt",
    "tensorrt-rtx": "pip install 'vitrail[tensorrt-rtx]'",
}
LEAST: dict[EngineBuilder, tuple[int, int]] = {"tensorrt": (10, 1), "tensorrt-rtx": (1, 2)}
"""The first with memory for activations that is given by size, and with its own CUDA graphs."""
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}

log = logging.getLogger(__name__)


class Context(Protocol):
    """What runs need of TensorRT's IExecutionContext. Where it returns False, its log tells why."""

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int, /) -> bool: ...
    def set_input_shape(self, name: str, shape: tuple[int, ...], /) -> bool: ...
    def set_tensor_address(self, name: str, memory: int, /) -> bool: ...
    def set_device_memory(self, memory: int, size: int, /) -> None: ...
    def execute_async_v3(self, stream_handle: int, /) -> bool: ...


class Named(Protocol):
    """A member of one of TensorRT's enumerations."""

    name: str


class Plan(Protocol):
    """What checks need of TensorRT's ICudaEngine."""

    num_io_tensors: int
    num_optimization_profiles: int

    def get_tensor_name(self, index: int, /) -> str: ...
    def get_tensor_dtype(self, name: str, /) -> Named: ...
    def get_tensor_profile_shape(self, name: str, profile_index: int, /) -> Sequence[Sequence[int]]: ...
    def get_device_memory_size_for_profile_v2(self, profile_index: int, /) -> int: ...
    def get_aliased_input_tensor(self, name: str, /) -> str | None: ...


class Loaded(Protocol):
    """An engine in device memory."""

    plan: Plan

    def context(self, *, graphs: bool) -> Context:
        """A context without memory for its activations; graphs: its shapes and addresses will stay what they are."""
        ...


class Library(Protocol):
    """Where engines come from. captures_itself: contexts made with graphs=True capture CUDA graphs on their own."""

    builder: EngineBuilder
    version: str
    captures_itself: bool

    def read(self, file: Path, *, cure: str) -> Loaded: ...
    def last_error(self) -> str: ...


class TensorRtLibrary:
    """The installed module. Raises OptionError where it is missing, or made for a newer CUDA than the driver supports."""

    def __init__(self, builder: EngineBuilder, gpu: Gpu) -> None:
        self.builder = builder
        self.captures_itself = builder == "tensorrt-rtx"
        self._module = _import(builder)
        self.version = str(self._module.__version__)
        require_version(builder, self.version)
        require_cuda(f"{builder} {self.version}", _cuda_major(PACKAGES[builder]), gpu)
        self._errors: list[str] = []
        self._logger = _logger(self._module, self._errors)
        self._runtime = self._module.Runtime(self._logger)
        if self._errors:
            # It holds nothing then: to use it, or to collect it, ends the process. So it stays.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._runtime))
            raise OptionError(f"{builder} {self.version} cannot start on {gpu.name}: {self.last_error()}")

    def read(self, file: Path, *, cure: str) -> LoadedEngine:
        """Raises ArtifactError with TensorRT's own words for a file that is no engine for this library and device."""
        self._errors.clear()
        with file.open("rb") as opened:
            plan = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) if file.stat().st_size else b""
            engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise ArtifactError(
                f"{self.builder} {self.version} cannot load engine {file.name}: {self.last_error()}; {cure}"
            )
        return LoadedEngine(self, engine, self._module, file)

    def last_error(self) -> str:
        """The first error of the last failure, which caused the others."""
        first = self._errors[0] if self._errors else "it gives no reason"
        self._errors.clear()
        return first[:400]


class LoadedEngine:
    """An engine and, for RTX, the kernels compiled for it, which are kept in a file beside the engine's."""

    def __init__(self, library: TensorRtLibrary, plan: Any, module: Any, file: Path) -> None:
        self.plan = plan
        self._library, self._module = library, module
        self._kernels = Kernels(plan.create_runtime_config(), file) if library.captures_itself else None

    def context(self, *, graphs: bool) -> Context:
        how = self._module.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._kernels is not None:
            config, strategy = self._kernels.config, self._module.CudaGraphStrategy
            config.set_execution_context_allocation_strategy(how)
            config.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE if graphs else strategy.DISABLED
            how = config
        context: Context | None = self.plan.create_execution_context(how)
        if context is None:
            raise ServerError(f"TensorRT made no execution context: {self._library.last_error()}")
        if self._kernels is not None:
            self._kernels.keep()
        return context


class Kernels:
    """What RTX compiles for an engine, from an earlier run where that fits: it refuses a file of another GPU, driver or
    version itself, and one that is damaged, and compiles anew.
    """

    def __init__(self, config: Any, engine: Path) -> None:
        self.config = config
        self._file = engine.with_name(engine.name + ".kernels")
        # The config does not keep its cache alive, and TensorRT would use it after it is gone.
        self._cache = config.create_runtime_cache()
        self._size = 0
        if self._file.is_file() and not self._cache.deserialize(self._file.read_bytes()):
            log.warning("%s does not fit this machine; kernels are compiled again", self._file.name)
        config.set_runtime_cache(self._cache)

    def keep(self) -> None:
        """Write them, where there are more than before; a folder that cannot be written costs the next start time."""
        blob = bytes(self._cache.serialize())
        if len(blob) == self._size:
            return
        self._size = len(blob)
        partial = self._file.with_name(self._file.name + ".partial")
        try:
            partial.write_bytes(blob)
            partial.replace(self._file)
        except OSError as error:
            log.warning("compiled kernels are not kept, the next start compiles them again: %s", error)


def dtype_of(plan: Plan, tensor: str) -> str:
    """As numpy and ml_dtypes name it; TensorRT's own name for what no graph of ours has."""
    name = plan.get_tensor_dtype(tensor).name
    return DTYPES.get(name, name)


def require_version(builder: EngineBuilder, version: str) -> None:
    """Raise OptionError for a library older than the functions that are used of it."""
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) < LEAST[builder]:
        least = ".".join(map(str, LEAST[builder]))
        raise OptionError(f"{builder} {version} is too old, {least} or newer is needed; {INSTALL[builder]}")


def require_cuda(library: str, major: int | None, gpu: Gpu) -> None:
    """Raise OptionError where the driver is older than the CUDA that the library is made for; None: unknown."""
    if major is not None and gpu.cuda[0] < major:
        found = ".".join(map(str, gpu.cuda))
        raise OptionError(
            f"the driver of {gpu.name} supports CUDA {found}, {library} needs CUDA {major}.0 or newer; "
            f"install a newer driver, or the library's packages for CUDA {gpu.cuda[0]} and build the engines with them"
        )


def _import(builder: EngineBuilder) -> Any:
    try:
        return importlib.import_module(PACKAGES[builder])
    except ImportError as error:
        raise OptionError(f"{builder} is not installed ({error}); {INSTALL[builder]}") from error


def _cuda_major(module: str) -> int | None:
    """Of the CUDA that the installed packages are made for, which their names tell: tensorrt_rtx_cu13_libs."""
    pattern = re.compile(re.escape(module) + r"[_-]cu(\d+)[_-](libs|bindings)")
    names = (each.metadata["Name"] or "" for each in distributions())
    majors = [int(found[1]) for name in names if (found := pattern.fullmatch(name.replace("-", "_")))]
    return max(majors, default=None)


def _logger(module: Any, errors: list[str]) -> Any:
    severity = module.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.DEBUG,
        severity.ERROR: logging.DEBUG,
        severity.WARNING: logging.WARNING,
    }

    class Logger(module.ILogger):  # type: ignore[misc]
        """Errors become the text of an exception; warnings are logged."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, kind: Any, message: str) -> None:
            if kind in (severity.INTERNAL_ERROR, severity.ERROR):
                errors.append(message)
            log.log(levels.get(kind, logging.DEBUG), "%s", message)

    return Logger()
