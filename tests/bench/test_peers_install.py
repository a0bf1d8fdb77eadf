"""A peer's environment is made once from its requirements; one that cannot be made has a reason. Without a network."""

import subprocess
import sys

import pytest
from bench.peers import install
from bench.peers.process import WorkerError


@pytest.fixture
def requirements(tmp_path, monkeypatch):
    monkeypatch.setattr(install, "HERE", tmp_path)
    monkeypatch.setattr(install, "ROOT", tmp_path)
    monkeypatch.setattr(install, "ENVIRONMENTS", tmp_path / "environments")
    for name in ("INDEX_URL", "EXTRA_INDEX_URL", "FIND_LINKS", "CONSTRAINT"):
        monkeypatch.delenv(f"PIP_{name}", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    (tmp_path / "requirements").mkdir()
    return tmp_path / "requirements" / "peer.txt"


def test_an_environment_is_made_and_used_again(requirements):
    requirements.write_text("")
    python = install.installed_python("peer", timeout_s=120)
    found = subprocess.run(
        [python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=False
    )
    assert found.stdout.strip() == str(requirements.parents[1] / "environments" / "peer")
    marker = python.parent / "marker"
    marker.touch()
    assert install.installed_python("peer", timeout_s=120) == python
    assert marker.exists()


def test_a_package_that_cannot_be_had_is_told_and_tried_again_next_time(requirements):
    requirements.write_text("vitrail-no-such-peer==1.0\n")
    for _ in range(2):
        with pytest.raises(WorkerError, match="No matching distribution found for vitrail-no-such-peer"):
            install.installed_python("peer", timeout_s=120)


def test_a_command_that_takes_too_long_or_is_not_there_is_told():
    with pytest.raises(WorkerError, match="took longer than 1 s"):
        install.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=1)
    with pytest.raises(WorkerError, match="'no-such-command' cannot be run"):
        install.run(["/no-such-command"], timeout_s=1)
