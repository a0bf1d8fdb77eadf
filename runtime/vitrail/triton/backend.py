"""What the python-backend adapters share: reading their model's parameters, tensors and errors in Triton's terms."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from vitrail.client.wire import ARTIFACTS_PARAMETER, error_to_text
from vitrail.errors import ArtifactError, Busy, Cancelled, DeadlineExceeded, InvalidInput, VitrailError
from vitrail.manifest import Manifest, load_manifest
from vitrail.triton.repository import SETTINGS_PARAMETER, ServingSettings, settings_from_json
from vitrail.triton.vision_models import PARAMETER as VISION_PARAMETER
from vitrail.triton.vision_models import VisionModels, vision_models_from_json

T = TypeVar("T")

# By name: the stub fills its module only after it has imported the model.
_STATUS = {
    InvalidInput: "INVALID_ARG",
    Busy: "UNAVAILABLE",
    DeadlineExceeded: "UNAVAILABLE",
    Cancelled: "CANCELLED",
}


@dataclass(frozen=True, slots=True)
class Served:
    """What a model is to serve."""

    artifacts: Path
    manifest: Manifest
    settings: ServingSettings
    vision: VisionModels


def read_served(args: Mapping[str, str]) -> Served:
    """From the model's parameters `artifacts` (else the variable VITRAIL_ARTIFACTS), `settings` and `vision_models`."""
    parameters = json.loads(args["model_config"]).get("parameters", {})
    values = {name: value["string_value"] for name, value in parameters.items()}
    directory = values.get(ARTIFACTS_PARAMETER) or os.environ.get("VITRAIL_ARTIFACTS")
    if not directory:
        raise ArtifactError(
            f"model '{args['model_name']}' has no parameter '{ARTIFACTS_PARAMETER}' and VITRAIL_ARTIFACTS is not set; "
            "name the artifact directory in one of them"
        )
    settings = (
        settings_from_json(values[SETTINGS_PARAMETER]) if SETTINGS_PARAMETER in values else ServingSettings()
    )
    vision = (
        vision_models_from_json(values[VISION_PARAMETER]) if VISION_PARAMETER in values else VisionModels()
    )
    return Served(Path(directory), load_manifest(Path(directory)), settings, vision)


@contextmanager
def loading(args: Mapping[str, str]) -> Iterator[None]:
    """For a model's `initialize`: logging goes to the server's log, and an error is told in its own words."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format=f"%(asctime)s {args['model_name']} %(levelname)s %(name)s: %(message)s",
    )
    try:
        yield
    except VitrailError as error:
        raise pb_utils.TritonModelException(error_to_text(error)) from error


def triton_error(error: VitrailError) -> Any:
    """Status and `[code] text`: no traceback, no paths."""
    status = next((name for kind, name in _STATUS.items() if isinstance(error, kind)), "INTERNAL")
    return pb_utils.TritonError(error_to_text(error), getattr(pb_utils.TritonError, status))


def read_input(request: Any, name: str) -> npt.NDArray[Any]:
    """A required input, valid while the request is."""
    array: npt.NDArray[Any] = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
    return array


def response(result: T | VitrailError, tensors: Callable[[T], Mapping[str, npt.NDArray[Any]]]) -> Any:
    """What `tensors` makes of a result, or the error."""
    if isinstance(result, VitrailError):
        return pb_utils.InferenceResponse(error=triton_error(result))
    outputs = [pb_utils.Tensor(name, array) for name, array in tensors(result).items()]
    return pb_utils.InferenceResponse(outputs)
