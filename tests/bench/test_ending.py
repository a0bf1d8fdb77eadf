"""A script whose artifacts or checkpoint are not there says so and ends, without a traceback."""

import subprocess
import sys
from pathlib import Path

import pytest
from bench.ending import ending

from vitrail.errors import ArtifactError

BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.parametrize(
    ("script", "arguments", "reason"),
    [
        ("memory.py", ["nowhere"], "error: no artifact directory at 'nowhere'"),
        ("goals.py", ["--demo", "nowhere"], "error: no artifact directory at 'nowhere'"),
        ("precisions.py", ["--checkpoint", "nowhere"], "error: no checkpoint directory at 'nowhere'"),
    ],
)
def test_what_is_not_there_is_named_without_a_traceback(tmp_path, script, arguments, reason):
    ended = subprocess.run(
        [sys.executable, BENCH / script, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == ArtifactError.exit_code
    assert ended.stderr.splitlines()[-1].startswith(reason)
    assert "Traceback" not in ended.stderr
    assert not ended.stdout


def test_other_errors_are_bugs_and_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), ending():
        1 / 0  # noqa: B018
