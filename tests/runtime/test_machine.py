"""A budget of threads and memory, against the machine that there is."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from vitrail.errors import OptionError
from vitrail.machine import check_memory, memory_bytes, physical_cores, share_threads
from vitrail.providers import Cpu, Cuda


def test_the_default_budget_is_every_physical_core_for_both():
    cores = physical_cores()
    assert 1 <= cores <= os.cpu_count()
    assert share_threads(Cpu()) == (Cpu(threads=cores), Cpu(threads=cores))


def test_only_the_cores_that_this_process_may_use_count():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from vitrail.machine import physical_cores as c; print(c())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "1\n"


def test_vision_gets_its_own_and_the_language_model_the_rest(monkeypatch):
    monkeypatch.setattr("vitrail.machine.physical_cores", lambda: 8)
    assert share_threads(Cpu(), 6, 2) == (Cpu(threads=2), Cpu(threads=4))
    assert share_threads(Cpu(), 0, 2) == (Cpu(threads=2), Cpu(threads=6))
    assert share_threads(Cpu(threads=3)) == (Cpu(threads=3), Cpu(threads=3))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((9,), "threads is 9, but this process may use 8 physical cores; give at most that"),
        ((-1,), "threads is -1"),
        ((4, 4), "vision_threads is 4 of 4 in all; give 1 to 3"),
        ((4, -1), "vision_threads is -1 of 4"),
        ((1, 1), "vision_threads is 1 of 1"),
    ],
)
def test_a_budget_that_the_machine_does_not_have_is_refused(monkeypatch, asked, message):
    monkeypatch.setattr("vitrail.machine.physical_cores", lambda: 8)
    with pytest.raises(OptionError, match=message):
        share_threads(Cpu(), *asked)


def test_a_gpu_has_no_budget_of_threads():
    assert share_threads(Cuda()) == (Cuda(), Cuda())
    for asked in ((2, 0), (0, 2)):
        with pytest.raises(OptionError, match="computes on a GPU"):
            share_threads(Cuda(), *asked)


def test_what_may_outgrow_the_memory_is_refused_with_both_sizes():
    check_memory("the cache", memory_bytes(), cure="lower it")
    with pytest.raises(
        OptionError, match=r"the cache may take 1024\.0 GiB, but this machine has .* GiB.*; lower it"
    ):
        check_memory("the cache", 1 << 40, cure="lower it")
