"""`make gpu-check`: the GPU tests, then the benchmark, within one time limit.

    python -m bench.gpu.check [--seconds 525]

Exit code 0 where both succeed, and where there is no GPU (it says so); 1 where a test or a stage of vitrail failed;
2 where a package is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.gpu.__main__ import RESULTS, no_cuda_provider, no_driver, no_gpu, not_installed, roomy

ROOT = Path(__file__).parents[2]
TESTS_S = 150.0
CLOSING_S = 15.0  # what the benchmark needs beyond its own limit to write and to end


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.check", description=__doc__)
    parser.add_argument("--seconds", type=float, default=525, help="of everything together")
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of DEVICE.json")
    args = parser.parse_args()
    end_s = time.monotonic() + args.seconds
    if why := no_driver():
        print(f"gpu-check skipped: {why}")
        return
    if missing := not_installed(also=("pytest",)):
        print(missing, file=sys.stderr)
        sys.exit(2)
    if why := no_gpu():
        print(f"gpu-check skipped: {why}")
        return
    if why := no_cuda_provider():
        print(why, file=sys.stderr)
        sys.exit(2)
    tests = run_tests(min(TESTS_S, args.seconds / 3))
    bench = run_bench(end_s - time.monotonic(), args.out, tests)
    sys.exit(1 if tests["exit_code"] or bench else 0)


def run_tests(limit_s: float) -> dict[str, object]:
    """pytest's own last line, and its exit code; 124 where it took longer than the limit."""
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    started_s = time.monotonic()
    try:
        found = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=limit_s, check=False
        )
        text, code = found.stdout, found.returncode
    except subprocess.TimeoutExpired as expired:
        text, code = _text(expired.stdout) + f"\nstopped after {limit_s:.0f} s", 124
    print(text, flush=True)
    summary = text.strip().rpartition("\n")[2].strip("= ")
    return {"exit_code": code, "summary": summary, "seconds": round(time.monotonic() - started_s, 1)}


def run_bench(limit_s: float, out: Path, tests: dict[str, object]) -> int:
    """The benchmark's exit code, in a process of its own: whatever it meets, what it has written stays."""
    command = [sys.executable, "-m", "bench.gpu", "--seconds", str(limit_s - CLOSING_S), "--out", str(out)]
    environment = {**os.environ, "VITRAIL_BENCH_TESTS": json.dumps(tests)}
    try:
        # Its artifacts go, even where it has to be stopped.
        with tempfile.TemporaryDirectory(prefix="vitrail-gpu-check-", dir=roomy()) as work:
            found = subprocess.run(
                [*command, "--work", work], cwd=ROOT, timeout=limit_s, check=False, env=environment
            )
            return found.returncode
    except subprocess.TimeoutExpired:
        print(
            f"the benchmark was stopped after {limit_s:.0f} s; what it had measured is in {out}",
            file=sys.stderr,
        )
        return 1


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


if __name__ == "__main__":
    main()
