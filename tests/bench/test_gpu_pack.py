"""Wheels for a machine without a network: GPU code of one capability is kept to the byte, all other is blanked."""

import struct
import zipfile

import pytest
from bench.gpu.fatbin import ENTRY, HEADER, NO_DEVICE, pieces, slim
from bench.gpu.pack import is_ours, pinned, slim_wheel

HEADER_BYTES = 64


def code(kernel):
    return b"\x7fELF....text." + kernel + b"\0"


def entry(capability, payload):
    header = bytearray(HEADER_BYTES)
    ENTRY.pack_into(header, 0, 2, 0x101, HEADER_BYTES, len(payload), 0, capability)
    return bytes(header) + payload


def fat(*entries):
    body = b"".join(entries)
    return HEADER.pack(0xBA55ED50, 1, 16, len(body)) + body


ATTENTION, EXPERTS = code(b"flash_attention_64"), code(b"MoeFCGemm_a")
LIBRARY = (
    b"host code"
    + fat(entry(80, ATTENTION), entry(90, ATTENTION))
    + bytes(24)
    + fat(entry(90, EXPERTS), entry(120, EXPERTS))
    + b"end"
)


def test_every_piece_of_every_fat_binary_is_found():
    found = list(pieces(LIBRARY))
    assert [piece.capability for piece in found] == [80, 90, 90, 120]
    assert [LIBRARY[piece.start : piece.stop] for piece in found] == [ATTENTION, ATTENTION, EXPERTS, EXPERTS]


def test_only_wanted_kernels_of_one_capability_are_left_and_nothing_moves():
    library = bytearray(LIBRARY)
    found = slim(library, capability=90, wanted=is_ours)
    assert (found.kept_bytes, found.blanked_bytes) == (len(ATTENTION), len(ATTENTION) + 2 * len(EXPERTS))
    assert len(library) == len(LIBRARY)
    kept = LIBRARY.index(ATTENTION, LIBRARY.index(ATTENTION) + 1)
    assert library[kept : kept + len(ATTENTION)] == ATTENTION
    assert (library.count(ATTENTION), library.count(b"Moe")) == (1, 0)
    assert library.startswith(b"host code")
    assert library.endswith(b"end")
    assert [piece.capability for piece in pieces(library)] == [80, 90, NO_DEVICE, 120]


def test_a_fat_binary_of_another_form_is_refused():
    broken = bytearray(LIBRARY)
    at = next(iter(pieces(broken))).at
    struct.pack_into("<Q", broken, at + 8, 1 << 40)
    with pytest.raises(ValueError, match="unknown form"):
        list(pieces(broken))


def test_kernels_of_our_models_are_ours():
    assert is_ours({b"Flash_fwd_kernel_traitsILi128E", b"Flash_fwd_kernel_traitsILi96E"})
    assert is_ours(set())
    assert not is_ours({b"Flash_fwd_kernel_traitsILi96E"})


def test_a_slim_wheel_is_whole_and_its_record_says_what_it_holds(tmp_path):
    wheel = tmp_path / "onnxruntime_gpu-1-py3-none-any.whl"
    library = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(library, LIBRARY)
        file.writestr("onnxruntime/capi/libonnxruntime.so.1.31.1", b"unused")
        file.writestr("onnxruntime/__init__.py", b"")
        file.writestr("onnxruntime_gpu-1.dist-info/RECORD", b"old")
    slim_wheel(wheel, capability=90)
    with zipfile.ZipFile(wheel) as file:
        assert file.testzip() is None
        record = file.read("onnxruntime_gpu-1.dist-info/RECORD").decode().splitlines()
        assert set(file.namelist()) == {line.split(",")[0] for line in record}
        assert "onnxruntime/capi/libonnxruntime.so.1.31.1" not in file.namelist()
        assert len(file.read(library)) == len(LIBRARY)
    assert record[-1] == "onnxruntime_gpu-1.dist-info/RECORD,,"


def test_versions_are_those_that_the_tests_run_with():
    assert pinned("onnxruntime-gpu") == pinned("onnxruntime") != ""
    assert pinned("typing-inspection").startswith("==")
    assert pinned("no-such-package") == ""
