"""Finds a tritonserver and prepares what it needs to run this Python: backend directory and environment."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vitrail.errors import ServerError
from vitrail.manifest import VisionContract
from vitrail.runs import cpu_tiles_per_look

STUB = "triton_python_backend_stub"
_BACKEND = re.compile(r'^backend: "(\w+)"', re.MULTILINE)
_MIB = 1 << 20
PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True, slots=True)
class Installation:
    """A tritonserver. `wheel` is the nvidia-pytriton wheel's tritonserver folder, whose parts must be put together;
    None for a complete installation, as in NVIDIA's container.
    """

    binary: Path
    wheel: Path | None = None

    @property
    def libraries(self) -> tuple[Path, ...]:
        """Folders of shared libraries that the binary needs beside the system's."""
        return () if self.wheel is None else (self.wheel.parent.parent / "nvidia_pytriton.libs",)


def find_installation(binary: Path | None = None) -> Installation:
    """`binary` where given, else the one on PATH, else the nvidia-pytriton wheel of this Python.

    Raises ServerError where there is none, saying how to get one.
    """
    found = binary or _on_path() or _in_wheel()
    if found is None:
        raise ServerError(
            "no tritonserver: none was given, none is on PATH, and this Python has no nvidia-pytriton wheel; "
            "install one with: pip install 'vitrail[runtime,server]' (Python 3.10 to 3.12), or run in NVIDIA's Triton container"
        )
    if not os.access(found, os.X_OK) or not found.is_file():
        raise ServerError(f"'{found}' is no executable; give the path of a tritonserver binary")
    home = found.resolve().parent.parent
    return Installation(found, wheel=home if (home / "python_backend_stubs").is_dir() else None)


def _on_path() -> Path | None:
    found = shutil.which("tritonserver")
    return Path(found) if found else None


def _in_wheel() -> Path | None:
    """Looks the wheel up without importing it."""
    spec = importlib.util.find_spec("pytriton")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = Path(folders[0], "tritonserver", "bin", "tritonserver") if folders else None
    return found if found and found.is_file() else None


def compose_backends(installation: Installation, out: Path) -> tuple[str, ...]:
    """Write the wheel's backends with the stub of this Python's version to `out`; the flags that name them.

    The wheel keeps the stubs of all Python versions apart from its backends, where no tritonserver finds them.
    """
    wheel = installation.wheel
    if wheel is None:
        return ()
    stub = wheel / "python_backend_stubs" / PYTHON_VERSION / STUB
    if not stub.is_file():
        have = ", ".join(sorted(folder.name for folder in (wheel / "python_backend_stubs").iterdir()))
        raise ServerError(
            f"the nvidia-pytriton wheel has no stub for Python {PYTHON_VERSION} (it has {have}); use one of these"
        )
    for part in ("backends", "caches"):
        shutil.copytree(wheel / part, out / part, dirs_exist_ok=True)
    copied = Path(shutil.copy(stub, out / "backends" / "python"))
    copied.chmod(0o755)
    return (f"--backend-directory={out / 'backends'}", f"--cache-directory={out / 'caches'}")


def require_backends(installation: Installation, repository: Path) -> None:
    """Raise ServerError where a model of `repository` needs a backend that this Triton does not have."""
    backends = (installation.wheel or installation.binary.resolve().parent.parent) / "backends"
    if not backends.is_dir():  # they lie elsewhere: Triton will tell
        return
    for config in sorted(repository.glob("*/config.pbtxt")):
        found = _BACKEND.search(config.read_text(encoding="utf-8"))
        if found and not (backends / found[1]).is_dir():
            have = ", ".join(sorted(folder.name for folder in backends.iterdir()))
            raise ServerError(
                f"model '{config.parent.name}' needs Triton's backend '{found[1]}', '{installation.binary}' has {have}; "
                "serve in NVIDIA's Triton container, or with --target cpu --provider cuda"
            )


def environment(installation: Installation, *, artifacts: Path, vision: VisionContract) -> dict[str, str]:
    """The server's environment. Its stubs embed libpython, which finds this virtual environment through PATH."""
    inherited: Mapping[str, str] = os.environ
    return {
        **inherited,
        # The sessions have threads of their own, with which numpy's would contend.
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)]),
        "LD_LIBRARY_PATH": os.pathsep.join([*_libraries(installation), *_inherited_libraries(inherited)]),
        "TOKENIZERS_PARALLELISM": "false",
        **{name: inherited.get(name, value) for name, value in _malloc(vision).items()},
        "VITRAIL_ARTIFACTS": str(artifacts),
    }


def _malloc(vision: VisionContract) -> dict[str, str]:
    """glibc gives arrays of so many bytes back when they are freed. By default it learns to keep ever larger ones, up to
    32 MiB: pictures on their way would stay in every process that they passed.

    Fresh pages cost time. Where a single tile keeps the cores busy, it is nothing beside the tile; where it does not,
    they come as huge pages, one fault for 512.
    """
    busy = cpu_tiles_per_look(vision, 1, openvino=False) == 1
    kept = (4 if busy else 16) * _MIB
    limits = {"MALLOC_MMAP_THRESHOLD_": str(kept), "MALLOC_TRIM_THRESHOLD_": str(2 * kept)}
    return limits if busy else {**limits, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def _libraries(installation: Installation) -> list[str]:
    """This Python's own libpython comes first: the loader would take the system's, which has other packages."""
    if installation.wheel is not None:
        _require_shared_python()
    return [*_python_library(), *map(str, installation.libraries)]


def _inherited_libraries(inherited: Mapping[str, str]) -> list[str]:
    return [folder for folder in inherited.get("LD_LIBRARY_PATH", "").split(os.pathsep) if folder]


def _python_library() -> list[str]:
    folder, name = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME")
    return [folder] if folder and name and Path(folder, name).is_file() else []


def _require_shared_python() -> None:
    if not _python_library() and ctypes.util.find_library(f"python{PYTHON_VERSION}") is None:
        raise ServerError(
            f"this Python {PYTHON_VERSION} has no shared libpython, which Triton's python backend embeds; "
            "use one built with --enable-shared, or install your system's libpython package"
        )
