"""Requests as they are sent, beside what protobuf writes, and who copies their tiles."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2 as pb

from vitrail.client import AsyncClient
from vitrail.client.exchange import Exchange, add_bytes, with_tiles
from vitrail.client.fake import FakeServer
from vitrail.client.shm import Region


def request():
    made = pb.ModelInferRequest(model_name="internvl", id="7")
    add_bytes(made, "prompt", "Was ist das für ein Bild?")
    return made


@pytest.mark.parametrize("shape", [(1, 3, 2, 2), (1, 3, 28, 28), (9, 3, 448, 448)])
def test_tiles_are_sent_as_protobuf_would_write_them(shape):
    tiles = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    by_protobuf = request()
    by_protobuf.inputs.add(name="tiles", datatype="UINT8", shape=shape)
    by_protobuf.raw_input_contents.append(tiles.tobytes())
    for given in (tiles, tiles[::-1][::-1], np.asfortranarray(tiles)):
        assert pb.ModelInferRequest.FromString(with_tiles(request(), given, region=None)) == by_protobuf


def test_a_request_without_tiles_has_no_input_for_them():
    sent = with_tiles(request(), np.empty((0, 3, 28, 28), np.uint8), region=None)
    assert pb.ModelInferRequest.FromString(sent) == request()


@pytest.mark.parametrize(
    ("shared", "copier"), [(False, (Exchange, "next_requests")), (True, (Region, "fill"))]
)
def test_an_async_client_s_loop_copies_no_tiles(monkeypatch, shared, copier):
    kind, name = copier
    copy, threads = getattr(kind, name), []

    def copied(self):
        threads.append(threading.current_thread())
        return copy(self)

    async def ask():
        async with AsyncClient(server.url, shared_memory=shared) as client:
            part = {"type": "image", "image": Image.new("RGB", (56, 28))}
            return await client.chat([{"role": "user", "content": [part]}])

    monkeypatch.setattr(kind, name, copied)
    with SharingServer() as server:
        assert asyncio.run(ask()).text == "Hello there"
    assert threads
    assert threading.main_thread() not in threads


class SharingServer(FakeServer):
    def SystemSharedMemoryRegister(self, request, context):
        return pb.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryUnregister(self, request, context):
        return pb.SystemSharedMemoryUnregisterResponse()


def test_a_thread_that_comes_late_fills_no_region_that_is_gone():
    """As where the task that waits for the thread is cancelled: it would write to memory that is mapped no more."""
    with Region(np.ones((1, 3, 28, 28), np.uint8)) as region:
        file = Path("/dev/shm", region.name)
        assert file.exists()
    region.fill()
    assert not file.exists()
