"""Opening a graph on ONNX Runtime: with the provider that was asked for, or an error that says why not."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime as ort

from vitrail.errors import ArtifactError, OptionError, ServerError
from vitrail.machine import cpu_features
from vitrail.pages import release_mapped
from vitrail.providers import Cpu, Cuda, OpenVino
from vitrail.session.cause import cause_in, driver_fault, library_fault
from vitrail.session.kernels import no_kernels
from vitrail.session.openvino import OPENVINO, add_openvino

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
EAGER = -1  # onnxruntime's gpu_graph_id of a run that is neither captured nor replayed
CUDA_SESSION = {
    "session.use_device_allocator_for_initializers": "1",  # weights beside the arena, at their size
    "session.record_ep_graph_assignment_info": "1",
}
ON_HOST = frozenset(
    {"Concat", "Min", "Mod", "Neg", "Squeeze"}
)  # of shapes, by which no tensor crosses the bus
WANTED: dict[type, str] = {Cpu: CPU, OpenVino: OPENVINO, Cuda: CUDA}
VNNI = frozenset({"avx512_vnni", "avx_vnni"})
SPIN_US = 50
SDPA_KERNELS = {"auto": 0, "flash": 1, "efficient": 2, "cudnn": 8}


def open_session(
    graph: Path, provider: Cpu | Cuda, *, optimize: bool = True, graphs: bool = False, spin: bool = False
) -> ort.InferenceSession:
    """A session on this provider; ONNX Runtime falls back to no other. graphs: whether its runs may be CUDA graphs.
    spin: whether a CPU's threads wait awake, for SPIN_US, for the next operator.

    Raises OptionError, with the cause, for a provider that is not to be had here, ArtifactError for a bad file.
    """
    if isinstance(provider, Cuda):
        check_cuda(provider)
    options = _session_options(provider, optimize=optimize, spin=spin)
    try:
        session = ort.InferenceSession(
            graph, options, providers=_providers(provider, graphs=graphs), enable_fallback=0
        )
    except Exception as error:
        if graphs and "graph capture" in str(error):
            open_session(graph, provider, optimize=optimize)  # tells which operators are not on the GPU
        raise _load_error(graph, provider, error) from error
    wanted = WANTED[type(provider)]
    if wanted not in session.get_providers():
        raise OptionError(
            f"provider {provider} was asked for, but onnxruntime took {', '.join(session.get_providers())}; "
            "its log on stderr tells why"
        )
    if wanted != CPU:
        _check_placement(session, graph, provider)
    release_mapped(graph.with_name(f"{graph.name}.data"))
    return session


@cache
def check_cuda(provider: Cuda) -> None:
    """Raise OptionError with every cause that keeps CUDA from running here: package, driver, GPU, libraries."""
    if CUDA not in ort.get_available_providers():
        raise OptionError(
            f"provider {provider} needs onnxruntime-gpu, this onnxruntime has {', '.join(ort.get_available_providers())}; "
            "replace it: pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'vitrail[gpu]'"
        )
    with contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()  # prints what it does not find; library_fault tells that
    library = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    faults = [fault for fault in (driver_fault(provider.device_id), library_fault(library)) if fault]
    if faults:
        raise OptionError(f"provider {provider} cannot run here: {'. Also: '.join(faults)}")


def check_cudnn(provider: Cuda) -> None:
    """Raise OptionError unless cuDNN is there: ONNX Runtime needs it for convolutions, and finds out when one runs."""
    try:
        ctypes.CDLL("libcudnn.so.9")
    except OSError as error:
        raise OptionError(
            f"provider {provider} cannot run the vision encoder: {cause_in(str(error))}"
        ) from error


def first_line(error: object) -> str:
    return str(error).strip().partition("\n")[0][:300]


def run_options(graph: int = EAGER, *, release: bool = False) -> ort.RunOptions:
    """graph: the CUDA graph that a run captures or replays, from 1; EAGER for a run without. release: give the memory of
    a CPU's activations back at the end of the run. Else it is kept for the next, in pieces as its shapes came.
    """
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    if release:
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def run_bound(
    session: ort.InferenceSession, binding: Any, stage: str, *, graph: int = EAGER, release: bool = False
) -> None:
    """Run a session on bound tensors, to its end. Raises ServerError, with the cause where it is a known one."""
    try:
        session.run_with_iobinding(binding, run_options(graph, release=release))
    except Exception as error:
        raise ServerError(f"{stage} failed: {cause_in(str(error)) or first_line(error)}") from error


def _check_placement(session: ort.InferenceSession, graph: Path, provider: Cpu | Cuda) -> None:
    """Raise OptionError where onnxruntime's own CPU kernels compute more than shapes, for want of the provider's."""
    placed = session.get_provider_graph_assignment_info()
    names = {node.op_type for each in placed if each.ep_name == CPU for node in each.get_nodes()} - ON_HOST
    if names:
        raise no_kernels(graph.name, provider, names)


def _session_options(provider: Cpu | Cuda, *, optimize: bool, spin: bool = False) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Vision and decoder share the cores, in one process or several: threads that spin while they wait take them away.
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    if spin:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    if not cpu_features() & VNNI:
        # x86 adds products of uint8 and int8 up in 16 bits there, which overflow: onnxruntime's slower kernels do not.
        options.add_session_config_entry("session.x64quantprecision", "1")
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if isinstance(provider, Cpu):
        options.intra_op_num_threads = provider.threads
        # A buffer that is to be used again is kept until it is: those of every shape in a layer would lie there at once.
        options.enable_mem_reuse = False
        if isinstance(provider, OpenVino):
            add_openvino(options, provider)
    else:
        options.intra_op_num_threads = 1  # shapes only are computed on the CPU
        for key, value in CUDA_SESSION.items():
            options.add_session_config_entry(key, value)
        options.add_session_config_entry("ep.cuda.fpa_intb_gemm", str(int(provider.fpa_intb)))
    return options


def _providers(provider: Cpu | Cuda, *, graphs: bool) -> list[Any]:
    """In onnxruntime's words; plugins are in the session's options. What CUDA has no kernel for (shapes, mostly) runs on
    the CPU.
    """
    if isinstance(provider, Cpu):
        return [] if isinstance(provider, OpenVino) else [CPU]
    os.environ.setdefault("ORT_ENABLE_XQA", "1")  # read as a kernel is made; there is no other way to tell it
    options = {
        "device_id": str(provider.device_id),
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": str(int(graphs)),
        "sdpa_kernel": str(SDPA_KERNELS[provider.attention]),
        "use_tf32": "0",  # its products have 10 bits: whoever wants them fast exports half precision
        # Trying out every algorithm takes time anew for each number of tiles, in a layer of 1% of the work.
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    if provider.memory_limit_bytes is not None:
        options["gpu_mem_limit"] = str(provider.memory_limit_bytes)
    return [(CUDA, options), CPU]


def _load_error(graph: Path, provider: Cpu | Cuda, error: Exception) -> ArtifactError | OptionError:
    cause = cause_in(str(error)) if isinstance(provider, Cuda) else None
    if cause is not None:
        return OptionError(f"provider {provider} cannot load {graph.name}: {cause}")
    return ArtifactError(f"onnxruntime cannot load {graph.name}: {first_line(error)}; export again")
