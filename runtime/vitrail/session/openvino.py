"""OpenVINO as a plugin of ONNX Runtime: whether it can compute here, and how a session is told to use it."""

from __future__ import annotations

import json
from functools import cache
from importlib.util import find_spec
from typing import Any

import onnxruntime as ort

from vitrail.errors import OptionError
from vitrail.machine import physical_cores
from vitrail.providers import OpenVino

OPENVINO = "OpenVINOExecutionProvider"
PLUGIN = "onnxruntime_ep_openvino"
HINTS = {"bf16": "bf16", "fp32": "f32"}


def add_openvino(options: ort.SessionOptions, provider: OpenVino) -> None:
    """Let a session compute on OpenVINO's CPU device. Raises OptionError, with its cause, where there is none."""
    device = cpu_device(provider)
    if provider.precision == "bf16" and "BF16" not in device.ep_metadata.get("OPTIMIZATION_CAPABILITIES", ""):
        raise OptionError(
            f"provider {provider} computes in bf16, which this processor does not; use openvino,precision=fp32 or cpu"
        )
    config = {
        "INFERENCE_PRECISION_HINT": HINTS[provider.precision],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": provider.threads or physical_cores(),
        "ENABLE_CPU_PINNING": False,  # the language model shares the cores
    }
    options.add_provider_for_devices([device], {"load_config": json.dumps({"CPU": config})})
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")


@cache
def cpu_device(provider: OpenVino) -> Any:
    """OpenVINO's CPU among onnxruntime's devices. Raises OptionError where the plugin is missing or lists none."""
    if find_spec(PLUGIN) is None:
        raise OptionError(
            f"provider {provider} needs {PLUGIN.replace('_', '-')}, which is not installed; pip install 'vitrail[openvino]'"
        )
    try:
        _register()
    except Exception as error:
        cause = str(error).partition("\n")[0]
        raise OptionError(
            f"provider {provider} cannot load OpenVINO's plugin ({cause}); install it anew with: "
            "pip install --force-reinstall 'vitrail[openvino]', or use cpu"
        ) from error
    for device in ort.get_ep_devices():
        if device.ep_name == OPENVINO and device.device.type == ort.OrtHardwareDeviceType.CPU:
            return device
    raise OptionError(
        f"provider {provider} found no device: OpenVINO's plugin for ONNX Runtime lists Intel processors only; use cpu"
    )


@cache
def _register() -> None:
    """Once in a process."""
    import onnxruntime_ep_openvino as plugin  # noqa: PLC0415 - optional

    ort.register_execution_provider_library("vitrail-openvino", plugin.get_library_path())
