"""Measure vitrail on one GPU, beside PyTorch and the roofline, within a fixed time.

    python -m bench.gpu                          # writes bench/results/DEVICE.json, ends with one JSON line
    python -m bench.gpu --device cpu --tiny      # tries every step out on a tiny model; says nothing about speed

Weights are random, in the published configurations: the figures do not depend on them. Another run of the same code on the
same device measures what DEVICE.json lacks. Without a GPU nothing is
measured, and the exit code is 0; it is 1 where a stage of vitrail failed, 2 where a package is missing.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import os
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.gpu.session import Wanted

RESULTS = Path(__file__).parents[1] / "results"
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - emptied at the end
LARGEST_BYTES = 18 << 30
NEEDED = {
    "numpy": "numpy",
    "PIL": "pillow",
    "pydantic": "pydantic",
    "rich": "rich",
    "onnxruntime": "onnxruntime-gpu",
    "onnx_ir": "onnx-ir",
    "onnxscript": "onnxscript",
    "ml_dtypes": "ml_dtypes",
    "tokenizers": "tokenizers",
    "sentencepiece": "sentencepiece",
}


def main() -> None:
    args = arguments()
    if args.device == "cuda" and (why := no_driver()):
        print(f"nothing measured: {why}. --device cpu --tiny tries the benchmark out.")
        return
    if missing := not_installed():
        print(missing, file=sys.stderr)
        sys.exit(2)
    if args.device == "cuda" and (why := no_gpu()):
        print(f"nothing measured: {why}. --device cpu --tiny tries the benchmark out.")
        return
    if args.device == "cuda" and (why := no_cuda_provider()):
        print(why, file=sys.stderr)
        sys.exit(2)
    session = importlib.import_module("bench.gpu.session")
    with tempfile.TemporaryDirectory(prefix="vitrail-bench-", dir=args.work or roomy()) as work:
        try:
            card = session.run(wanted(args, Path(work)))
        except session.VitrailError as error:
            print(error, file=sys.stderr)
            sys.exit(error.exit_code)
    print(session.card_text(card), file=sys.stderr)
    print(json.dumps(card))
    sys.exit(1 if session.failed(card) else 0)


def roomy() -> str | None:
    """Memory that looks like a disk, where it holds the largest artifacts; None for the usual place."""
    there = Path(SHARED_MEMORY).is_dir()
    return SHARED_MEMORY if there and shutil.disk_usage(SHARED_MEMORY).free >= LARGEST_BYTES else None


def not_installed(*, also: tuple[str, ...] = ()) -> str | None:
    """What to install, in words; None where nothing is missing."""
    needed = {**NEEDED, **{name: name for name in also}}
    missing = [package for module, package in needed.items() if find_spec(module) is None]
    missing += ["vitrail (its metadata, as its wheel brings it)"] * (not _has_metadata("vitrail"))
    cure = "docs/benchmark.md tells how to bring them where there is no network"
    return f"not installed here: {', '.join(missing)}; {cure}" if missing else None


def _has_metadata(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def no_driver() -> str | None:
    """That there is no driver, found without any package; None where there is one."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "the NVIDIA driver is missing (libcuda.so.1)"
    return None


def no_gpu() -> str | None:
    """Why there is no GPU to measure on; None where there is one."""
    from vitrail.session.cause import driver_fault  # noqa: PLC0415 - after what is missing was told

    return driver_fault(0)


def no_cuda_provider() -> str | None:
    """Why onnxruntime cannot use the GPU; None where it can. torch, imported first, brings it CUDA's libraries, if no
    packages of their own do.
    """
    importlib.import_module("bench.gpu.device").torch_cuda()
    found = importlib.import_module("onnxruntime").get_available_providers()
    if "CUDAExecutionProvider" in found:
        return None
    return (
        f"this onnxruntime has no CUDA ({', '.join(found)}); install onnxruntime-gpu, see docs/benchmark.md"
    )


def wanted(args: argparse.Namespace, work: Path) -> Wanted:
    from bench.gpu.session import Wanted  # noqa: PLC0415 - after what is missing was told

    return Wanted(
        device=args.device,
        provider=args.provider,
        tiny=args.tiny,
        models=tuple(args.models.split(",")) if args.models else None,
        slots=args.slots,
        seconds=args.seconds,
        out=args.out,
        plot=args.plot,
        compile=args.compile,
        fresh=args.fresh,
        work=work,
        tests=json.loads(os.environ.get("VITRAIL_BENCH_TESTS", "null")),
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--provider", help="of vitrail's sessions, such as cuda:0,graphs=off [default: cuda:0]"
    )
    parser.add_argument("--tiny", action="store_true", help="a tiny model and few repeats")
    parser.add_argument("--models", help="such as internvl2-2b:fp16,internvl3-8b:int4, in that order")
    parser.add_argument(
        "--slots", type=int, help="rows of 4096 tokens of KV cache: fewer on small cards [default: 32]"
    )
    parser.add_argument(
        "--seconds", type=float, default=480, help="of the whole run; what does not fit is listed"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of DEVICE.json and DEVICE.png")
    parser.add_argument("--fresh", action="store_true", help="measure again what DEVICE.json has already")
    parser.add_argument("--plot", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="torch.compile, too"
    )
    parser.add_argument(
        "--work",
        help=f"where artifacts go while they are measured [default: {SHARED_MEMORY}, where it has room]",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
