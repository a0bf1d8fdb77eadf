"""Opening a graph on ONNX Runtime: with the provider that was asked for, or an error that says why not."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from vitrail.errors import ArtifactError, OptionError
from vitrail.providers import Cpu, Cuda
from vitrail.session.cause import cause_in, driver_fault, library_fault

TENSOR_TYPES = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "int32": "tensor(int32)",
    "uint8": "tensor(uint8)",
    "int8": "tensor(int8)",
}
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def open_session(path: Path, provider: Cpu | Cuda, *, optimize: bool = True) -> ort.InferenceSession:
    """A session on this provider; ONNX Runtime falls back to no other.

    Raises OptionError, with the cause, for a provider that is not to be had here, ArtifactError for a bad file.
    """
    if isinstance(provider, Cuda):
        check_cuda(provider)
    options = _session_options(provider, optimize=optimize)
    try:
        session = ort.InferenceSession(path, options, providers=_providers(provider), enable_fallback=0)
    except Exception as error:
        raise _load_error(path, provider, error) from error
    wanted = CUDA if isinstance(provider, Cuda) else CPU
    if wanted not in session.get_providers():
        raise OptionError(
            f"provider {provider} was asked for, but onnxruntime took {', '.join(session.get_providers())}; "
            "its log on stderr tells why"
        )
    return session


def check_cuda(provider: Cuda) -> None:
    """Raise OptionError with every cause that keeps CUDA from running here: package, driver, GPU, libraries."""
    if CUDA not in ort.get_available_providers():
        raise OptionError(
            f"provider {provider} needs onnxruntime-gpu, this onnxruntime has {', '.join(ort.get_available_providers())}; "
            "replace it: pip uninstall onnxruntime && pip install 'vitrail[gpu]'"
        )
    with contextlib.redirect_stdout(
        io.StringIO()
    ):  # it prints what it does not find; library_fault tells that
        ort.preload_dlls()
    library = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    faults = [fault for fault in (driver_fault(provider.device_id), library_fault(library)) if fault]
    if faults:
        raise OptionError(f"provider {provider} cannot run here: {'. Also: '.join(faults)}")


def first_line(error: object) -> str:
    return str(error).strip().partition("\n")[0][:300]


def check_input(
    session: ort.InferenceSession, stage: str, name: str, *, dtype: str, shape: Sequence[int | None]
) -> None:
    """Raise ArtifactError unless the graph has this input as the manifest describes it; None is any size."""
    given = {each.name: each for each in session.get_inputs()}.get(name)
    wanted = TENSOR_TYPES[dtype]
    if given is None or given.type != wanted or not _fits(given.shape, shape):
        found = "no such input" if given is None else f"{given.type} {given.shape}"
        raise ArtifactError(
            f"the manifest does not describe {stage}.onnx: input '{name}' should be {wanted} {list(shape)}, "
            f"the graph has {found}; export again"
        )


def _session_options(provider: Cpu | Cuda, *, optimize: bool) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = provider.threads if isinstance(provider, Cpu) else 1
    options.log_severity_level = 3
    # A pattern is one block for each new shape, beside what its first run took: it doubled the memory of activations.
    options.enable_mem_pattern = not isinstance(provider, Cpu)
    # Vision and decoder share the cores, in one process or several: threads that spin while they wait take them away.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def _providers(provider: Cpu | Cuda) -> list[Any]:
    """In onnxruntime's words. What CUDA has no kernel for (shapes, mostly) runs on the CPU."""
    if isinstance(provider, Cpu):
        return [CPU]
    options = {"device_id": str(provider.device_id), "arena_extend_strategy": "kSameAsRequested"}
    if provider.memory_limit_bytes is not None:
        options["gpu_mem_limit"] = str(provider.memory_limit_bytes)
    return [(CUDA, options), CPU]


def _load_error(path: Path, provider: Cpu | Cuda, error: Exception) -> ArtifactError | OptionError:
    cause = cause_in(str(error)) if isinstance(provider, Cuda) else None
    if cause is not None:
        return OptionError(f"provider {provider} cannot load {path.name}: {cause}")
    return ArtifactError(f"onnxruntime cannot load {path.name}: {first_line(error)}; export again")


def _fits(given: Sequence[int | str], wanted: Sequence[int | None]) -> bool:
    return len(given) == len(wanted) and all(
        size is None or size == found for found, size in zip(given, wanted, strict=True)
    )
