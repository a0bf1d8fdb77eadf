"""The wheel: everything that runs is in it, and a client needs little beside it."""

import email
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
CLIENT_NEEDS = {"numpy", "pillow", "pydantic", "rich", "tritonclient", "typer"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        out,
        ROOT,
    ]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(out.glob("*.whl"))) as file:
        yield file


def test_it_holds_both_packages_and_the_model_repository_as_they_are_in_the_tree(wheel):
    sources = {
        "runtime/vitrail": "vitrail",
        "export/vitrail_export": "vitrail_export",
        "model_repository": "vitrail/model_repository",
    }
    files = [
        (f"{place}/{file.relative_to(ROOT / source)}", file)
        for source, place in sources.items()
        for file in (ROOT / source).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    ]
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == {name for name, _ in files}
    assert all(wheel.read(name) == file.read_bytes() for name, file in files)


def test_a_client_needs_no_torch_and_no_onnxruntime(wheel):
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    needs = email.message_from_bytes(wheel.read(name)).get_all("Requires-Dist")
    always = {need.split(">")[0].split("[")[0] for need in needs if "extra ==" not in need}
    assert always == CLIENT_NEEDS


@pytest.fixture(scope="module")
def needs(wheel):
    """needs(extras) -> names of the packages that an installation with these extras asks for"""
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
    requirements = [Requirement(each) for each in metadata.get_all("Requires-Dist")]

    def collect(*extras):
        wanted = [
            each
            for each in requirements
            if any(not each.marker or each.marker.evaluate({"extra": extra}) for extra in extras)
        ]
        inner = {extra for each in wanted if each.name == "vitrail" for extra in each.extras}
        return {each.name for each in wanted} | (collect(*inner) if inner else set())

    return collect


def test_nothing_but_its_own_extra_brings_an_onnxruntime_so_that_two_never_meet(needs):
    both = {"onnxruntime", "onnxruntime-gpu"}
    assert not needs("export", "server", "verify", "bench", "tensorrt-rtx") & both
    assert needs("runtime") & both == {"onnxruntime"}
    assert needs("gpu") & both == {"onnxruntime-gpu"}


def test_the_gpu_extra_names_the_libraries_that_the_cuda_provider_loads(needs):
    assert {"nvidia-cublas", "onnxruntime-gpu"} <= needs("gpu")
    assert needs("gpu") - {"nvidia-cublas", "onnxruntime-gpu"} == needs("runtime") - {"onnxruntime"}


def test_it_brings_the_command(wheel):
    name = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "vitrail = vitrail.__main__:main" in wheel.read(name).decode()
