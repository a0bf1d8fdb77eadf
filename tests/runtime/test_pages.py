"""Memory given back: pages of a mapped file, and what the allocator kept."""

import ctypes
import mmap
import re
from pathlib import Path

import numpy as np
import pytest

from vitrail.manifest import load_manifest
from vitrail.pages import release_freed, release_mapped
from vitrail.providers import Cpu
from vitrail.session.open import open_decoder

SIZE = 64 << 20


def resident(name):
    """Bytes in memory of this process's mappings whose path ends so."""
    found, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            here = line.endswith(name)
        elif here and line.startswith("Rss:"):
            found += 1024 * int(line.split()[1])
    return found


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights.data"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return path


@pytest.mark.parametrize("access", [mmap.ACCESS_READ, mmap.ACCESS_COPY])
def test_pages_of_a_mapped_file_go_and_come_back_as_they_were(file, access):
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=access) as mapped:
        values = np.frombuffer(mapped, np.uint8)
        total = int(values.sum())
        assert resident(file.name) == SIZE
        release_mapped(file)
        assert resident(file.name) == 0
        assert int(values.sum()) == total
        del values


def test_what_was_written_to_a_private_mapping_stays(file):
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[:5] = b"hello"
        release_mapped(file)  # would take the file's own back into its place
        assert mapped[:5] == b"hello"


def test_a_session_keeps_little_of_its_weights_file(exported):
    directory = exported("internvl2-tiny", precision="int4")
    session = open_decoder(directory, load_manifest(directory), Cpu(), slots=1, capacity=16)
    assert session.slots == 1
    assert resident("decoder.onnx.data") == 0


def test_a_file_that_is_not_mapped_is_no_error(tmp_path):
    release_mapped(tmp_path / "none.data")


def test_what_was_freed_between_what_is_used_goes_back():
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        pytest.skip("not glibc")
    libc.malloc.restype = ctypes.c_void_p
    blocks = [libc.malloc(ctypes.c_size_t(100_000)) for _ in range(640)]
    for block in blocks:
        ctypes.memset(block, 1, 100_000)
    for block in blocks[:-1]:
        libc.free(ctypes.c_void_p(block))
    before = resident("[heap]")
    release_freed()
    assert before - resident("[heap]") > 32 << 20
    libc.free(ctypes.c_void_p(blocks[-1]))
