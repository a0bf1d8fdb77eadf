"""The driver's functions as they are called, over a library with its names that lies in the host's memory."""

import ctypes
import gc
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from vitrail.errors import OptionError, ServerError
from vitrail.session.cuda_driver import Copy2D, Gpu, LibCuda, Rows
from vitrail.session.cuda_memory import Arena, Staging, require_memory

SOURCE = Path(__file__).with_name("libcuda_stub.c")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")

    def compile_stub(*flags):
        library = tmp_path_factory.mktemp("stub") / "libcuda.so.1"
        subprocess.run(["cc", "-shared", "-fPIC", *flags, "-o", str(library), str(SOURCE)], check=True)
        return str(library)

    return compile_stub


@pytest.fixture(scope="module")
def library(compiled):
    return compiled()


def live(library):
    """What was allocated, opened or captured and not given back."""
    gc.collect()
    return ctypes.c_int.in_dll(ctypes.CDLL(library), "live").value


def test_a_gpu_is_described(library):
    driver = LibCuda(0, library=library)
    assert driver.gpu == Gpu("Stub GPU", "sm_86", (12, 8))
    assert driver.memory_bytes() == (5 << 30, 8 << 30)


def test_bytes_go_to_the_device_and_come_back(library):
    driver = LibCuda(0, library=library)
    memory, stream = driver.allocate(4096), driver.open_stream()
    sent, back = driver.pin(4096), driver.pin(4096)
    sent[:] = np.arange(4096) % 251
    stream.upload(memory.address, sent)
    stream.clear(memory.address + 100, 50)
    stream.download(back, memory.address)
    stream.wait()
    expected = np.arange(4096) % 251
    expected[100:150] = 0
    np.testing.assert_array_equal(back, expected)


def test_rows_are_copied_with_their_pitch_and_no_further(library):
    driver = LibCuda(0, library=library)
    memory, stream = driver.allocate(600), driver.open_stream()
    cache = np.arange(300, dtype=np.uint16).reshape(2, 3, 50)
    stream.upload(memory.address, cache)
    stream.copy_rows(memory.address + 300, memory.address, Rows(3, 20, 100))
    back = np.zeros_like(cache)
    stream.download(back, memory.address)
    stream.wait()
    expected = cache.copy()
    expected[1, :, :10] = cache[0, :, :10]
    np.testing.assert_array_equal(back, expected)


def test_a_thread_that_was_activated_may_allocate_while_another_captures_for_all(library):
    """As onnxruntime does while a decode step becomes a graph and a picture is seen."""
    driver, failures = LibCuda(0, library=library), []

    def allocate(*, activated):
        if activated:
            driver.activate()
        try:
            driver.allocate(64)
        except ServerError as error:
            failures.append((activated, str(error)))

    capturing = ctypes.c_int.in_dll(ctypes.CDLL(library), "capturing_for_all")
    capturing.value = 1
    try:
        for activated in (True, False):
            thread = threading.Thread(target=allocate, kwargs={"activated": activated})
            thread.start()
            thread.join()
    finally:
        capturing.value = 0
    assert failures == [(False, "cuMemAlloc_v2 failed: other (CUDA_ERROR_OTHER, 900)")]


def test_a_captured_graph_does_its_work_at_every_launch_and_not_before(library):
    driver = LibCuda(0, library=library)
    memory, stream = driver.allocate(8), driver.open_stream()
    back = np.zeros(8, np.uint8)
    stream.begin_capture()
    stream.download(back, memory.address)
    graph = stream.end_capture()
    for value in (3, 5):
        stream.upload(memory.address, np.full(8, value, np.uint8))
        assert value not in back
        graph.launch()
        stream.wait()
        assert (back == value).all()


def test_everything_is_given_back_when_its_object_is_gone(library):
    driver = LibCuda(0, library=library)
    before = live(library)
    memory, stream, pinned = driver.allocate(512), driver.open_stream(), driver.pin(512)
    stream.begin_capture()
    graph = stream.end_capture()
    view = pinned[10:20]
    assert live(library) == before + 4
    del memory, stream, graph, pinned
    assert live(library) == before + 1
    del view
    assert live(library) == before


def test_a_failure_is_told_in_the_drivers_words(library):
    driver = LibCuda(0, library=library)
    with pytest.raises(
        ServerError, match=r"cuMemAlloc_v2 failed: out of memory \(CUDA_ERROR_OUT_OF_MEMORY, 2\)"
    ):
        driver.allocate(9 << 30)


def test_another_thread_makes_the_gpu_its_own(library):
    driver, found = LibCuda(0, library=library), []
    ctypes.c_int.in_dll(ctypes.CDLL(library), "current").value = 0
    with pytest.raises(ServerError, match="cuMemGetInfo_v2 failed"):
        driver.memory_bytes()
    thread = threading.Thread(target=lambda: (driver.activate(), found.append(driver.memory_bytes())))
    thread.start()
    thread.join()
    assert found == [(5 << 30, 8 << 30)]


def test_the_copys_record_has_the_size_that_the_driver_reads():
    assert ctypes.sizeof(Copy2D) == 128


def test_a_machine_without_a_driver_is_told_what_to_do(tmp_path):
    with pytest.raises(
        OptionError, match=r"there is no NVIDIA driver here \(.*libcuda.so.1.*\); install one, in a container"
    ):
        LibCuda(0, library=str(tmp_path / "libcuda.so.1"))


def test_a_gpu_that_is_not_there_is_told_with_how_many_are(library):
    with pytest.raises(OptionError, match="GPU 1 was asked for; this machine has 1, the first is 0"):
        LibCuda(1, library=library)


def test_a_driver_that_finds_no_gpu_is_told_what_to_do(compiled):
    with pytest.raises(
        OptionError,
        match=r"finds no GPU that it can use \(cuInit failed: other .*100\)\); look at nvidia-smi",
    ):
        LibCuda(0, library=compiled("-DINIT=100"))


def test_a_driver_that_lacks_a_function_is_too_old(compiled):
    old = compiled("-DcuGraphInstantiateWithFlags=cuSomethingElse")
    with pytest.raises(OptionError, match=r"too old \(.*cuGraphInstantiateWithFlags.*\); install driver 525"):
        LibCuda(0, library=old)


def test_a_context_can_be_given_back(library):
    LibCuda(0, library=library).leave()
    assert ctypes.c_int.in_dll(ctypes.CDLL(library), "released").value == 1


def test_memory_that_is_not_free_is_refused_with_its_parts(library):
    driver = LibCuda(0, library=library)
    require_memory(driver, {"weights": 3 << 30, "KV cache": 2 << 30}, cure="take fewer slots")
    with pytest.raises(OptionError) as refused:
        require_memory(
            driver, {"weights": 3 << 30, "KV cache": (2 << 30) + 1, "none": 0}, cure="take fewer slots"
        )
    assert str(refused.value) == (
        "5.00 GiB of GPU memory are needed (weights 3.00 GiB, KV cache 2.00 GiB), but 5.00 GiB of 8.00 GiB "
        "are free on Stub GPU; take fewer slots"
    )


def test_regions_are_aligned_apart_and_zero(library):
    driver = LibCuda(0, library=library)
    stream = driver.open_stream()
    sizes = {"a": 1, "b": 700, "c": 0, "d": 256}
    arena, staging = Arena(driver, sizes, stream=stream), Staging(driver, sizes)
    base = arena.address["a"]
    assert {name: address - base for name, address in arena.address.items()} == {
        "a": 0,
        "b": 256,
        "c": 1024,
        "d": 1024,
    }
    assert arena.size_bytes == 1280
    back = np.ones(1280, np.uint8)
    stream.download(back, base)
    stream.wait()
    assert not back.any()
    staging.array("d", (64,), np.float32)[:] = 1
    staging.array("b", (7, 50), np.float16)[:] = 2
    assert (staging.array("d", (64,), np.float32) == 1).all()
    assert staging.array("b", (2, 3), np.float16).tolist() == [[2, 2, 2], [2, 2, 2]]
