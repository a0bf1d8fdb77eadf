"""Tiles handed to a server on this machine through /dev/shm instead of the socket."""

from __future__ import annotations

import os
import threading
import uuid
from multiprocessing import shared_memory
from typing import TYPE_CHECKING

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from vitrail.errors import InvalidInput

if TYPE_CHECKING:
    from typing_extensions import Self

    from vitrail.core import Uint8

# A region that is still being read cannot be unregistered: of a cancelled request, the pictures under way.
# It is tried again after later requests, and when the client closes, with these pauses.
UNREGISTER_PAUSES_S = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_DIRECTORY = "/dev/shm"  # noqa: S108 (where POSIX shared memory lives on Linux)


class Region:
    """System shared memory for `tiles`, gone when the context ends (or the process, however it ends). Another thread may
    fill it; the end of the context waits for that.

    Raises InvalidInput where the memory does not fit: writing there would kill the process with SIGBUS.
    """

    def __init__(self, tiles: Uint8) -> None:
        _require_space(tiles.nbytes)
        self.name = f"vitrail-tiles-{uuid.uuid4().hex}"
        self.size_bytes = tiles.nbytes
        self._tiles: Uint8 | None = tiles
        self._filling = threading.Lock()
        self._memory = shared_memory.SharedMemory(self.name, create=True, size=tiles.nbytes)

    def fill(self) -> None:
        """Copy the tiles there, unless the context has ended."""
        with self._filling:
            tiles = self._tiles
            if tiles is not None:
                np.ndarray(tiles.shape, tiles.dtype, buffer=self._memory.buf)[:] = tiles

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._filling:
            self._tiles = None
            self._memory.close()
        self._memory.unlink()

    def register_request(self) -> pb.SystemSharedMemoryRegisterRequest:
        return pb.SystemSharedMemoryRegisterRequest(
            name=self.name, key=f"/{self.name}", offset=0, byte_size=self.size_bytes
        )


def unregister_request(name: str) -> pb.SystemSharedMemoryUnregisterRequest:
    return pb.SystemSharedMemoryUnregisterRequest(name=name)


def _require_space(size_bytes: int) -> None:
    free = free_bytes()
    if size_bytes > free:
        raise InvalidInput(
            f"the tiles need {size_bytes} bytes of shared memory, {_DIRECTORY} has {free} left; "
            "make the client with shared_memory=False"
        )


def free_bytes() -> int:
    try:
        space = os.statvfs(_DIRECTORY)
    except OSError as error:
        raise InvalidInput(
            f"there is no {_DIRECTORY} here; make the client with shared_memory=False"
        ) from error
    return space.f_bavail * space.f_frsize
