"""TensorRT sessions on a GPU and engines that keep TensorRT's rules and compute on the CPU."""

import shutil

import pytest
from tests.runtime.engine_fakes import fake_machine, with_engines
from tests.runtime.trt.steps import BUILDERS, CAPACITY, CHUNK, SLOTS, TILES

from vitrail.manifest import load_manifest
from vitrail.providers import TensorRt
from vitrail.session.ort import OrtDecoder
from vitrail.session.trt import TrtDecoder


@pytest.fixture(scope="module")
def directory(exported, tmp_path_factory):
    export = exported("internvl3-tiny", precision="float16", vision_precision="float16", dialect="standard")
    made = shutil.copytree(export, tmp_path_factory.mktemp("engines") / "export")
    for builder in BUILDERS:
        with_engines(made, builder=builder, slots=SLOTS, capacity=CAPACITY, chunk=CHUNK, tiles=TILES)
    return made


@pytest.fixture(scope="module")
def manifest(directory):
    return load_manifest(directory)


@pytest.fixture(scope="module")
def onnxruntime_decoder(directory, manifest):
    return lambda: OrtDecoder(directory, manifest, slots=SLOTS, capacity=CAPACITY)


@pytest.fixture
def opened(directory, manifest):
    """opened(kind, ...) -> (session, machine)"""

    def open_session(kind, *, builder="tensorrt", graphs=True, machine=None, manifest=manifest, **options):
        machine = machine or fake_machine(builder=builder)
        provider = TensorRt(graphs=graphs, rtx=builder == "tensorrt-rtx")
        return kind(directory, manifest, provider=provider, machine=machine, **options), machine

    return open_session


@pytest.fixture
def decoder(opened):
    def open_decoder(*, slots=SLOTS, capacity=CAPACITY, **options):
        return opened(TrtDecoder, slots=slots, capacity=capacity, **options)

    return open_decoder
