"""Memory of a tree of processes, as /proc tells it."""

import os
import subprocess

import numpy as np
from bench.resident import Sampler, tree


def test_a_process_counts_with_its_descendants():
    with subprocess.Popen(["sleep", "60"]) as child:
        assert child.pid in tree(os.getpid())
        found = Sampler(os.getpid()).look()
        assert 0 < found["sleep"] < found["process"]
        child.kill()
    assert child.pid not in tree(os.getpid())


def test_the_peak_is_the_fullest_moment_not_the_last():
    sampler = Sampler(os.getpid())
    held = np.ones(64 << 20, np.uint8)
    full = sampler.look()["process"]
    del held
    assert sampler.look()["process"] < full - (32 << 20)
    assert sampler.peak["process"] >= full
