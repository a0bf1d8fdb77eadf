"""Exports with TensorRT engines for the GPU that is here, which tests of several files are run on.

VITRAIL_TEST_ENGINES=fake puts in their place engines that compute on the CPU, on a machine as strict as TensorRT: that is
how these tests are tried out without a GPU. Precisions of engines then make no difference.
"""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from vitrail.errors import OptionError
from vitrail.providers import TensorRt
from vitrail.session import trt
from vitrail.session.trt_library import PACKAGES

FAKE = os.environ.get("VITRAIL_TEST_ENGINES") == "fake"
BUILDERS = sorted(PACKAGES)


def why_none(builder):
    """Why the builder is not here; None where it is."""
    return None if FAKE or find_spec(PACKAGES[builder]) else f"{builder} is not installed"


def why_not_here(builder, precision):
    """What the builder says where it is not for this GPU, or the GPU not for the precision; None where they fit."""
    from vitrail_export.engine.builders import open_builder
    from vitrail_export.engine.options import CURRENT

    opened = open_builder(builder)
    try:
        opened.check_precision(precision, opened.targets((CURRENT,)))
    except OptionError as error:
        return str(error)
    return None


def provider_of(builder):
    return TensorRt(rtx=builder == "tensorrt-rtx")


def use_fakes():
    """Sessions from now on open on fake machines."""
    from tests.runtime.engine_fakes import fake_machine

    trt.open_machine = lambda provider: fake_machine(builder="tensorrt-rtx" if provider.rtx else "tensorrt")


def build(
    export, out, *, builder, precision="fp16", slots=4, context_tokens=512, max_tiles=3, chunk=32, **given
):
    """A copy of an export with all engines; skips the test where the builder is not for this GPU."""
    made = Path(shutil.copytree(export, out / "export"))
    if FAKE:
        from tests.runtime.engine_fakes import with_engines

        with_engines(
            made, builder=builder, slots=slots, capacity=context_tokens, chunk=chunk, tiles=max_tiles
        )
        return made
    from vitrail_export.engine.build import build_engines
    from vitrail_export.engine.options import CURRENT, EngineOptions

    if why := why_not_here(builder, precision):
        pytest.skip(f"no {precision} engines of {builder}: {why}")
    shape = {"slots": slots, "context_tokens": context_tokens, "max_tiles": max_tiles, "prefill_chunk": chunk}
    options = EngineOptions(
        builder=builder, decoder=True, precision=precision, targets=(CURRENT,), **shape, **given
    )
    build_engines(made, options)
    return made
