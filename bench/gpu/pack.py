"""Wheels for a GPU machine without a network: what `make gpu-check` needs beyond torch, in one folder.

    python -m bench.gpu.pack --python 3.12 --out .pack-wheels               # about 260 MB
    python -m bench.gpu.pack --python 3.12 --out .pack-wheels --only sm_90  # onnxruntime-gpu for one kind of GPU

Versions are those of constraints.txt. `--only` blanks the machine code for other compute capabilities, and for
mixtures of experts and other models than ours; it needs zstandard. The slim wheel is for measuring and testing, not
for serving: it has been built, but no GPU has run it yet.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from bench.gpu.fatbin import slim

ROOT = Path(__file__).parents[2]
# What machines that are made for PyTorch commonly lack; --also names more.
PACKAGES = ("pydantic", "pydantic_core", "annotated-types", "typing-inspection")
GPU_RUNTIME = "onnxruntime-gpu"
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in (35, 34, 31, 28, 27, 17)),
    "manylinux2014_x86_64",
)
# Kernels of models that are not ours: experts, paged and linear attention, head sizes beyond 32, 64 and 128.
FOREIGN = re.compile(
    rb"GroupProblemShape|MoeFCGemm|[Mm]oe|MoE|TmaWarpSpecializedGrouped|PagedAttention|[Ll]inear_?[Aa]ttention|"
    rb"sparse_attention|[Ff]p4|Flash_fwd_kernel_traitsILi(96|192|256)E"
)
# Libraries of the wheel that Python does not load.
UNUSED = re.compile(r"capi/libonnxruntime(\.so.*|_providers_tensorrt\.so)$")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu.pack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--python", default="3.12", help="the machine's version")
    parser.add_argument("--out", type=Path, default=ROOT / ".pack-wheels", help="a folder, new or empty")
    parser.add_argument("--only", metavar="sm_NN", help="machine code for this compute capability alone")
    parser.add_argument("--also", action="append", default=[], metavar="NAME", help="a further package")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if any(args.out.iterdir()):
        sys.exit(f"'{args.out}' is not empty; name a new folder, so that no two versions of a package meet")
    pip("wheel", "--no-deps", "--wheel-dir", str(args.out), str(ROOT))
    download([*PACKAGES, GPU_RUNTIME, *args.also], args.python, args.out)
    if args.only:
        (wheel,) = args.out.glob("onnxruntime_gpu-*.whl")
        slim_wheel(wheel, capability=int(args.only.removeprefix("sm_")))
    for file in sorted(args.out.iterdir()):
        print(f"{file.stat().st_size / 1e6:8.1f} MB  {file.name}")
    print(
        f"there: python3 -m pip install --no-index --no-deps --target .pack {args.out.name}/*.whl && make gpu-check"
    )


def download(packages: list[str], python: str, out: Path) -> None:
    options = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    platforms = [option for platform in PLATFORMS for option in ("--platform", platform)]
    pip("download", *options, *platforms, "--dest", str(out), *(f"{name}{pinned(name)}" for name in packages))


def pip(*arguments: str) -> None:
    if code := subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], check=False).returncode:
        sys.exit(code)  # it has told why


def pinned(name: str) -> str:
    """`==` the version that the tests run with; nothing for a package that they do not use."""
    wanted = "onnxruntime" if name == GPU_RUNTIME else name.replace("-", "_").lower()
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        known, _, version = line.partition("==")
        if known.replace("-", "_").lower() == wanted:
            return f"=={version}"
    return ""


def slim_wheel(wheel: Path, *, capability: int) -> None:
    """Rewrite a wheel of onnxruntime-gpu without the code that this GPU, or no model of ours, uses."""
    partial = wheel.with_suffix(".partial")
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as target:
        record: list[str] = []
        for entry in source.infolist():
            if UNUSED.search(entry.filename) or entry.filename.endswith("/RECORD"):
                continue
            content = source.read(entry)
            if entry.filename.endswith("providers_cuda.so"):
                library = bytearray(content)
                found = slim(library, capability=capability, wanted=is_ours)
                print(
                    f"kept {found.kept_bytes / 1e6:.1f} MB of machine code, blanked {found.blanked_bytes / 1e6:.1f} MB"
                )
                content = bytes(library)
            target.writestr(entry, content)
            record.append(recorded(entry.filename, content))
        (name,) = (entry.filename for entry in source.infolist() if entry.filename.endswith("/RECORD"))
        target.writestr(name, "\n".join([*record, f"{name},,", ""]))
    partial.replace(wheel)


def is_ours(kernels: set[bytes]) -> bool:
    """Whether a piece has a kernel that is not another kind of model's."""
    return not kernels or any(not FOREIGN.search(name) for name in kernels)


def recorded(name: str, content: bytes) -> str:
    """A line of a wheel's RECORD (PEP 376): name, hash, size."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}"


if __name__ == "__main__":
    main()
