"""What computes, by name; and why a GPU that was asked for cannot be had."""

import re
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vitrail.cli import app
from vitrail.errors import OptionError
from vitrail.providers import Cpu, Cuda, OpenVino, TensorRt, parse_provider, with_threads
from vitrail.session.cause import cause_in, driver_fault, library_fault
from vitrail.session.open import open_decoder

NAMED = {
    "cpu": Cpu(),
    "cpu,threads=3": Cpu(threads=3),
    "openvino": OpenVino(),
    "openvino,threads=2,precision=fp32": OpenVino(threads=2, precision="fp32"),
    "cuda": Cuda(),
    "cuda:1": Cuda(device_id=1),
    "cuda:1,memory=20GiB,graphs=off": Cuda(device_id=1, memory_limit_bytes=20 << 30, graphs=False),
    "cuda,memory=512MiB": Cuda(memory_limit_bytes=512 << 20),
    "cuda:0,attention=flash,fpa_intb=on": Cuda(attention="flash", fpa_intb=True),
    "tensorrt": TensorRt(),
    "tensorrt-rtx:2,graphs=off": TensorRt(device_id=2, graphs=False, rtx=True),
}


@pytest.mark.parametrize(("text", "provider"), NAMED.items())
def test_a_provider_is_what_its_name_says_and_its_text_reads_back(text, provider):
    assert parse_provider(text) == provider
    assert parse_provider(str(provider)) == provider


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gpu", "provider 'gpu' is unknown; it is one of cpu, openvino, cuda, tensorrt, tensorrt-rtx"),
        ("", "provider '' is unknown"),
        ("CUDAExecutionProvider", "is unknown; it is one of cpu, openvino, cuda"),
        ("cpu:1", "the CPU has no number; give 'cpu'"),
        ("openvino:0", "the CPU has no number; give 'openvino'"),
        ("openvino,precision=int8", "precision is 'int8'; it is one of bf16, fp32"),
        ("cuda:", "device is ''; give a whole number from 0"),
        ("cpu,threads=1000000", "threads is '1000000'; give a whole number from 0 to 999999"),
        ("openvino,precision=bf16,precision=fp32", "has an option twice; give each once"),
        ("cuda:-1", "device is '-1'"),
        ("cuda,memory=lots", "memory is 'lots'; give a size such as 20GiB"),
        ("cuda,memory=0GiB", "memory is 0 bytes; give more than 0"),
        ("cuda,attention=fast", "attention is 'fast'; it is one of auto, flash, efficient, cudnn"),
        ("cuda,graphs=yes", "graphs is 'yes'; give on or off"),
        (
            "cuda,threads=4",
            "provider 'cuda' has no option 'threads'; it has memory, graphs, attention, fpa_intb",
        ),
        ("tensorrt,memory=1GiB", "provider 'tensorrt' has no option 'memory'; it has graphs"),
    ],
)
def test_a_name_that_means_nothing_is_refused_with_what_would_do(text, words):
    with pytest.raises(OptionError, match=words):
        parse_provider(text)


def test_threads_are_the_cpus():
    assert with_threads(Cpu(), 3) == Cpu(3)
    assert with_threads(Cpu(2), 0) == Cpu(2)
    assert with_threads(Cuda(), 0) == Cuda()
    with pytest.raises(OptionError, match="threads is 3, but provider cuda:0 computes on a GPU"):
        with_threads(Cuda(), 3)
    with pytest.raises(OptionError, match="threads is -1; it must be at least 0"):
        with_threads(Cpu(), -1)


# What onnxruntime-gpu 1.31.1 wrote on a machine without CUDA.
NO_CUDA = (
    "2026-11-22 09:12:04.330942643 [E:onnxruntime:Default, provider_bridge_ort.cc:2458 operator()] "
    "/onnxruntime_src/onnxruntime/core/session/provider_bridge_ort.cc:2043 onnxruntime::Provider& "
    "onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library "
    "/venv/onnxruntime/capi/libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: "
    "cannot open shared object file: No such file or directory"
)


@pytest.mark.parametrize(
    ("text", "cause", "cure"),
    [
        (NO_CUDA, "libcublasLt.so.13 is missing", "pip install 'vitrail[gpu]'"),
        ("libcuda.so.1: cannot open shared object file", "driver is missing", "nvidia-smi"),
        ("CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version", "older", "driver"),
        ("CUDA failure 100: no CUDA-capable device is detected ; GPU=0", "finds no GPU", "--gpus all"),
        ("CUDA failure 101: invalid device ordinal ; GPU=7", "no GPU of that number", "nvidia-smi -L"),
        ("CUDA error 209: no kernel image is available for execution on the device", "capability", "another"),
        ("CUDA failure 2: out of memory ; GPU=0", "memory does not suffice", "lower slots"),
        (
            "bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 1048576",
            "of size 1048576",
            "memory limit",
        ),
    ],
)
def test_the_cause_is_read_from_what_onnxruntime_wrote(text, cause, cure):
    told = cause_in(text)
    assert told is not None
    assert cause in told
    assert cure in told


def test_what_is_no_known_failure_has_no_cause():
    assert cause_in("Protobuf parsing failed.") is None


@pytest.mark.parametrize(
    ("defines", "device", "words"),
    [
        (["-DINIT=100"], 0, "the NVIDIA driver finds no GPU that it can use"),
        (
            ["-DVERSION=12080"],
            0,
            r"the driver of Stub GPU supports CUDA 12\.8, 13\.0 is needed; .* 580 or newer",
        ),
        ([], 2, "GPU 2 was asked for; this machine has 1"),
        (["-DMAJOR=7"], 0, "Stub GPU is sm_70, sm_75 or newer is needed"),
        (["-DMAJOR=12"], 0, None),
    ],
)
def test_the_driver_is_asked_itself(tmp_path, defines, device, words):
    library = tmp_path / "libcuda.so.1"
    stub = Path(__file__).with_name("libcuda_stub.c").read_text(encoding="utf-8")
    compile_c(stub, library, *(defines if "-DVERSION=12080" in defines else ["-DVERSION=13000", *defines]))
    fault = driver_fault(device, str(library))
    assert (fault is None) if words is None else re.search(words, fault)


def test_a_driver_that_is_not_there_is_told_with_its_cure(tmp_path):
    assert "there is no NVIDIA driver here" in driver_fault(0, str(tmp_path / "libcuda.so.1"))


def test_a_provider_library_that_does_not_load_is_told_by_the_library_it_lacks(tmp_path):
    needed, library = tmp_path / "libcublasLt.so.13", tmp_path / "libonnxruntime_providers_cuda.so"
    assert "is not in this onnxruntime" in library_fault(library)
    compile_c("", needed, "-Wl,-soname,libcublasLt.so.13")
    compile_c("", library, f"-L{tmp_path}", "-Wl,--no-as-needed", "-l:libcublasLt.so.13")
    needed.unlink()
    assert "libcublasLt.so.13 is missing; install CUDA 13's libraries" in library_fault(library)


def test_cuda_with_the_cpu_package_names_the_package_to_replace():
    pytest.importorskip("onnxruntime")
    from vitrail.session.inference import check_cuda

    with pytest.raises(OptionError, match=r"pip uninstall -y onnxruntime onnxruntime-gpu .*vitrail\[gpu\]"):
        check_cuda(Cuda())


def test_without_onnxruntime_the_extra_that_brings_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("vitrail.session.open.find_spec", lambda _name: None)
    for provider, extra in ((Cpu(), "runtime"), (Cuda(), "gpu")):
        with pytest.raises(OptionError, match=rf"needs onnxruntime, .* pip install 'vitrail\[{extra}\]'"):
            open_decoder(tmp_path, None, provider, slots=1, capacity=1)


def compile_c(source, library, *flags):
    command = ["cc", "-shared", "-fPIC", "-x", "c", *flags, "-o", str(library), "-"]
    try:
        subprocess.run(command, input=source.encode(), check=True)
    except FileNotFoundError:
        pytest.skip("no C compiler")


def vitrail(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.skipif(driver_fault(0) is None, reason="there is a GPU")
def test_a_gpu_that_is_not_there_ends_a_command_with_its_cause(exported):
    model = exported("internvl2-tiny", precision="float16")
    result = vitrail("ask", "--model", model, "-q", "What is it?", "--provider", "cuda")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: provider cuda:0 ")
    assert "pip install 'vitrail[gpu]'" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("ask", "-q", "What is it?"),
        ("eval", "--task", "demo", "--url", "localhost:1", "--out", "results.jsonl"),
        ("bench",),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_server_s_provider_is_not_its_asker_s_to_choose(arguments):
    result = vitrail(*arguments, "--provider", "cuda:1")
    assert result.exit_code == 2
    assert "--provider cuda:1 is for --model; a server's is set by `vitrail serve`" in result.stderr


def test_an_unknown_provider_ends_a_command_with_those_that_are_known(tmp_path):
    result = vitrail("serve", tmp_path, "--provider", "gpu")
    assert result.exit_code == 2
    assert (
        "provider 'gpu' is unknown; it is one of cpu, openvino, cuda, tensorrt, tensorrt-rtx" in result.stderr
    )
