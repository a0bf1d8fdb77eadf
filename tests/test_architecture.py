"""Which module may know which: the map of docs/architecture.md, asserted."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import vitrail

ROOT = Path(__file__).parents[1]
RUNTIME, EXPORT = ROOT / "runtime" / "vitrail", ROOT / "export" / "vitrail_export"

LAYERS = [
    {
        "artifact_files",
        "core",
        "digest",
        "dtypes",
        "engine_files",
        "errors",
        "machine",
        "manifest",
        "pages",
        "providers",
        "rebuild",
        "runs",
    },
    {
        "answer",
        "fair",
        "images",
        "kv",
        "messages",
        "options",
        "pace",
        "pictures",
        "prompt",
        "sample",
        "spans",
        "stream",
        "templates",
        "tiling",
        "tokenizer",
    },
    {
        "admission",
        "batch",
        "features",
        "look",
        "plan",
        "request",
        "schedule",
        "sequence",
        "settings",
        "session",
        "splice",
    },
    {"decoder"},
    {"engine", "metrics"},
    {"benchmark", "cli", "client", "evaluation", "triton"},
    {"__main__"},
]
HEAVY = {
    "onnxruntime",
    "torch",
    "tokenizers",
    "sentencepiece",
    "transformers",
    "onnx",
    "onnxscript",
    "tensorrt",
    "tensorrt_rtx",
}
FOR_EXPORT = {
    "artifact_files",
    "core",
    "dtypes",
    "engine_files",
    "errors",
    "images",
    "manifest",
    "pictures",
    "plan",
    "prompt",
    "providers",
    "rebuild",
    "sample",
    "session",
    "templates",
    "tiling",
    "tokenizer",
}


@cache
def imports(file: Path) -> set[str]:
    """Full names of the modules that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def part_of(file: Path) -> str:
    return file.relative_to(RUNTIME).parts[0].removesuffix(".py")


def vitrail_parts(names: set[str]) -> set[str]:
    known = set().union(*LAYERS)
    return {
        name.split(".")[1] for name in names if name.startswith("vitrail.") and name.split(".")[1] in known
    }


def runtime_files():
    return [file for file in sorted(RUNTIME.rglob("*.py")) if part_of(file) != "__init__"]


@pytest.mark.parametrize("file", runtime_files(), ids=lambda file: str(file.relative_to(RUNTIME)))
def test_a_module_imports_only_its_own_layer_and_those_below(file):
    level = {part: depth for depth, parts in enumerate(LAYERS) for part in parts}
    above = {part for part in vitrail_parts(imports(file)) if level[part] > level[part_of(file)]}
    assert not above


@pytest.mark.parametrize("file", sorted((RUNTIME / "client").rglob("*.py")), ids=lambda file: file.name)
def test_the_client_knows_neither_engine_nor_sessions(file):
    assert not vitrail_parts(imports(file)) & {"decoder", "engine", "session", "tokenizer", "triton"}


@pytest.mark.parametrize("file", sorted(EXPORT.rglob("*.py")), ids=lambda file: file.name)
def test_the_export_takes_only_the_contract_from_the_runtime(file):
    assert vitrail_parts(imports(file)) <= FOR_EXPORT


def test_nothing_in_the_runtime_imports_the_export_but_its_commands():
    users = {
        part_of(file)
        for file in runtime_files()
        if any(n.startswith("vitrail_export") for n in imports(file))
    }
    assert users <= {"cli"}


def test_onnxruntime_is_used_by_its_sessions_alone():
    users = {str(file.relative_to(RUNTIME)) for file in runtime_files() if "onnxruntime" in imports(file)}
    assert users <= {"session/inference.py", "session/cuda.py", "session/openvino.py"}


def test_triton_python_backend_utils_is_used_by_the_triton_adapters_alone():
    users = {part_of(file) for file in runtime_files() if "triton_python_backend_utils" in imports(file)}
    assert users == {"triton"}


def test_importing_vitrail_and_its_client_loads_nothing_heavy():
    code = (
        "import sys, vitrail, vitrail.client, vitrail.cli; print(*(m for m in sys.modules if '.' not in m))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not HEAVY & set(loaded.split())


def test_public_names_are_sorted_and_resolve():
    assert list(vitrail.__all__) == sorted(vitrail.__all__)
    assert all(hasattr(vitrail, name) for name in vitrail.__all__)


@pytest.mark.parametrize(
    "file", [*runtime_files(), *sorted(EXPORT.rglob("*.py"))], ids=lambda file: file.name
)
def test_a_file_is_one_room(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 350
