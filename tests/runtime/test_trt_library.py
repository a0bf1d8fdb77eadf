"""TensorRT for RTX itself, on a machine without a driver: it builds tiny engines here, and every way to load them fails."""

import subprocess
import sys
import weakref
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from vitrail.errors import ArtifactError, OptionError
from vitrail.session.cuda_driver import Gpu
from vitrail.session.trt_library import LoadedEngine, TensorRtLibrary, dtype_of, require_cuda, require_version

GPU = Gpu("Test GPU", "sm_89", (13, 0))


@pytest.fixture(scope="module")
def trt():
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")


@pytest.fixture(scope="module")
def library(trt):
    return TensorRtLibrary("tensorrt-rtx", GPU)


@pytest.fixture(scope="module")
def tiny(trt):
    """An engine for sm_89 that copies its input."""
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    output = network.add_identity(network.add_input("x", trt.float32, (4,))).get_output(0)
    network.mark_output(output)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    return bytes(builder.build_serialized_network(network, config))


def test_the_library_tells_its_version(library, trt):
    assert (library.builder, library.version) == ("tensorrt-rtx", trt.__version__)
    assert library.captures_itself


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda plan: b"", "Cannot deserialize with an empty memory buffer"),
        (lambda plan: plan[:30], "cannot load engine"),
        (lambda plan: plan[: len(plan) // 2], "plan.header.size == blobSize failed"),
        (lambda plan: bytes(len(plan)), "magicTag == kEXPECTED_MAGIC_TAG failed"),
        (lambda plan: b"ftrt" + plan[4:], "cannot load engine"),
    ],
)
def test_a_file_that_is_no_whole_engine_is_refused_in_tensorrts_words(library, tiny, tmp_path, damage, words):
    file = tmp_path / "damaged.engine"
    file.write_bytes(damage(tiny))
    with pytest.raises(ArtifactError) as refused:
        library.read(file, cure="build it again")
    assert str(refused.value).startswith(
        f"tensorrt-rtx {library.version} cannot load engine damaged.engine: "
    )
    assert words in str(refused.value)
    assert str(refused.value).endswith("; build it again")


def test_a_whole_engine_without_a_driver_is_refused_for_that(library, tiny, tmp_path):
    file = tmp_path / "whole.engine"
    file.write_bytes(tiny)
    with pytest.raises(ArtifactError, match="CUDA driver version is insufficient"):
        library.read(file, cure="build it again")


def test_the_reason_of_one_failure_is_not_told_for_the_next(library, tiny, tmp_path):
    for content, words in ((b"", "empty memory buffer"), (bytes(200), "magicTag")):
        file = tmp_path / "engine"
        file.write_bytes(content)
        with pytest.raises(ArtifactError, match=words):
            library.read(file, cure="build it again")
    assert library.last_error() == "it gives no reason"


def test_a_driver_older_than_the_packages_is_refused(trt):
    with pytest.raises(
        OptionError,
        match=r"the driver of Test GPU supports CUDA 12\.8, tensorrt-rtx \S+ needs CUDA 13\.0 or newer",
    ):
        TensorRtLibrary("tensorrt-rtx", Gpu("Test GPU", "sm_89", (12, 8)))


@pytest.mark.parametrize(("builder", "version"), [("tensorrt", "8.6.2"), ("tensorrt-rtx", "1.1.1.26")])
def test_a_library_without_the_functions_that_are_used_is_too_old(builder, version):
    with pytest.raises(OptionError, match=f"{builder} {version} is too old, 1.* or newer is needed; "):
        require_version(builder, version)


@pytest.mark.parametrize(
    ("builder", "version"),
    [("tensorrt", "10.3.0"), ("tensorrt", "11.4.0.106"), ("tensorrt-rtx", "1.7.1.116")],
)
def test_newer_libraries_are_taken(builder, version):
    require_version(builder, version)


def test_packages_that_do_not_tell_their_cuda_are_left_to_tensorrt():
    require_cuda("tensorrt", None, Gpu("Test GPU", "sm_87", (12, 2)))


def test_a_library_that_is_not_installed_is_told_with_how_to_install_it():
    code = (
        "import sys; sys.modules['tensorrt'] = None\n"
        "from vitrail.errors import OptionError\n"
        "from vitrail.session.cuda_driver import Gpu\n"
        "from vitrail.session.trt_library import TensorRtLibrary\n"
        "try: TensorRtLibrary('tensorrt', Gpu('Test GPU', 'sm_89', (13, 0)))\n"
        "except OptionError as error: print(error)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.startswith("tensorrt is not installed (")
    assert "JetPack and NVIDIA's TensorRT containers have it" in told


def test_dtypes_have_numpys_names(trt):
    class Plan:
        def __init__(self, dtype):
            self.dtype = dtype

        def get_tensor_dtype(self, name):
            return self.dtype

    names = {
        trt.uint8: "uint8",
        trt.float16: "float16",
        trt.float32: "float32",
        trt.int64: "int64",
        trt.int32: "int32",
    }
    assert {dtype: dtype_of(Plan(dtype), "x") for dtype in names} == names
    assert dtype_of(Plan(trt.bfloat16), "x") == "bfloat16"
    assert dtype_of(Plan(trt.fp8), "x") == "FP8"


RUNTIME_THAT_HOLDS_NOTHING = """
import sys, types
from vitrail.errors import OptionError
from vitrail.session.cuda_driver import Gpu
from vitrail.session.trt_library import TensorRtLibrary
class ILogger:
    Severity = types.SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)
class Runtime:
    def __init__(self, logger):
        logger.log(1, "CUDA initialization failure with error: 35")
    def __del__(self):
        print("this would have ended the process")
sys.modules["tensorrt"] = types.SimpleNamespace(__version__="11.4.0", ILogger=ILogger, Runtime=Runtime)
try: TensorRtLibrary("tensorrt", Gpu("Test GPU", "sm_89", (13, 0)))
except OptionError as error: print(error)
"""


def test_a_runtime_that_did_not_start_is_neither_used_nor_collected():
    command = [sys.executable, "-c", RUNTIME_THAT_HOLDS_NOTHING]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told == "tensorrt 11.4.0 cannot start on Test GPU: CUDA initialization failure with error: 35\n"


class FakeModule:
    """Of tensorrt_rtx, what makes contexts; each context compiles one more kernel."""

    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="managed")
    CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="capture", DISABLED="none")

    def __init__(self):
        self.kernels, self.made, self.cache = b"", [], lambda: None

    def create_runtime_config(self):
        config = SimpleNamespace(cuda_graph_strategy=None)
        config.create_runtime_cache = self.create_runtime_cache
        config.set_runtime_cache = lambda cache: setattr(self, "cache", weakref.ref(cache))
        config.set_execution_context_allocation_strategy = lambda how: setattr(config, "how", how)
        return config

    def create_runtime_cache(self):
        return FakeCache(self)

    def create_execution_context(self, how):
        assert self.cache() is not None, "the cache is gone"
        self.kernels += b"k"
        self.made.append((how.how, how.cuda_graph_strategy))
        return object()


@dataclass(eq=False)
class FakeCache:
    module: FakeModule

    def serialize(self):
        return self.module.kernels

    def deserialize(self, blob):
        fits = set(blob) <= {ord("k")}
        self.module.kernels = bytes(blob) if fits else b""
        return fits


def opened(library, file):
    module = FakeModule()
    return LoadedEngine(library, module, module, file), module


def test_contexts_leave_activations_to_the_session_and_capture_where_they_are_asked_to(library, tmp_path):
    loaded, module = opened(library, tmp_path / "e.engine")
    loaded.context(graphs=False)
    loaded.context(graphs=True)
    assert module.made == [("managed", "none"), ("managed", "capture")]


def test_compiled_kernels_are_kept_beside_the_engine(library, tmp_path):
    loaded, _ = opened(library, tmp_path / "e.engine")
    loaded.context(graphs=False)
    loaded.context(graphs=False)
    assert (tmp_path / "e.engine.kernels").read_bytes() == b"kk"
    again, module = opened(library, tmp_path / "e.engine")
    assert module.kernels == b"kk"
    again.context(graphs=True)
    assert [file.name for file in tmp_path.iterdir()] == ["e.engine.kernels"]


def test_kernels_of_another_machine_are_compiled_again(library, tmp_path, caplog):
    (tmp_path / "e.engine.kernels").write_bytes(b"another GPU")
    loaded, _ = opened(library, tmp_path / "e.engine")
    assert "e.engine.kernels does not fit this machine" in caplog.text
    loaded.context(graphs=False)
    assert (tmp_path / "e.engine.kernels").read_bytes() == b"k"


def test_a_folder_that_cannot_be_written_is_told_and_no_reason_to_stop(library, tmp_path, caplog):
    loaded, _ = opened(library, tmp_path / "gone" / "e.engine")
    assert loaded.context(graphs=False) is not None
    assert "compiled kernels are not kept" in caplog.text
