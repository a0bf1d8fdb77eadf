"""The timing cache: what TensorRT measured of kernels before, kept beside the engines with a hash of its own.

TensorRT takes a damaged cache for an empty one and only logs it; here it is refused by name.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from vitrail.errors import ArtifactError

MAGIC = b"vitrail timing cache 1\n"
DIGEST_BYTES = 32


def cache_path(directory: Path, *, version: str, target: str) -> Path:
    return directory / f"timing.{version}.{target}.cache"


def read_cache(path: Path) -> bytes:
    """What `write_cache` was given; empty where there is no cache yet. Raises ArtifactError for a damaged one."""
    if not path.is_file():
        return b""
    content = path.read_bytes()
    found, blob = content[len(MAGIC) : len(MAGIC) + DIGEST_BYTES], content[len(MAGIC) + DIGEST_BYTES :]
    if not content.startswith(MAGIC) or hashlib.sha256(blob).digest() != found:
        raise ArtifactError(
            f"timing cache '{path}' is damaged; remove it: rm '{path}'; the next build makes it anew"
        )
    return blob


def write_cache(path: Path, blob: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(MAGIC + hashlib.sha256(blob).digest() + blob)
    partial.replace(path)
