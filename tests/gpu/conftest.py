"""Tests that need an NVIDIA GPU. `make gpu-check` runs them; elsewhere each is skipped with what is missing.

VITRAIL_TEST_PROVIDER=cpu runs those that take the `provider` on a CPU, VITRAIL_TEST_ENGINES=fake those of a TensorRT `builder` on
engines that compute there: that is how they are tried out without a GPU.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from functools import cache
from pathlib import Path

import pytest
from tests.gpu import engines

from vitrail.providers import Cpu, Cuda, parse_provider
from vitrail.session.cause import driver_fault

HERE = Path(__file__).parent
PROVIDER = os.environ.get("VITRAIL_TEST_PROVIDER", "cuda")


@cache
def no_gpu() -> str | None:
    """Why there is no GPU, as the driver tells it; None where there is one."""
    return driver_fault(0)


def no_provider() -> str | None:
    """Why the provider under test cannot be had; None where it can."""
    if isinstance(parse_provider(PROVIDER), Cpu):
        return None
    if why := no_gpu():
        return why
    with contextlib.suppress(ImportError):
        importlib.import_module("torch")  # brings the CUDA libraries where they are not installed otherwise
    found = importlib.import_module("onnxruntime").get_available_providers()
    if "CUDAExecutionProvider" in found or not isinstance(parse_provider(PROVIDER), Cuda):
        return None
    return f"this onnxruntime has no CUDA ({', '.join(found)}); install onnxruntime-gpu"


def why_not(item: pytest.Item) -> str | None:
    """What a test lacks here: its TensorRT, its provider, or a GPU."""
    names, callspec = getattr(item, "fixturenames", ()), getattr(item, "callspec", None)
    if builder := callspec and callspec.params.get("builder"):
        return engines.why_none(builder) or (None if engines.FAKE else no_gpu())
    return no_provider() if "provider" in names else no_gpu()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.gpu)
        if why := why_not(item):
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(autouse=True, scope="session")
def _fakes():
    """Sessions of fake engines, where these are asked for."""
    if engines.FAKE:
        engines.use_fakes()


@pytest.fixture(scope="session")
def provider():
    """What the sessions under test compute with: the first GPU."""
    return parse_provider(PROVIDER)
