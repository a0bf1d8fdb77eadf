"""A cache of visual features: a picture that is seen again, a shared thumbnail or an equal video frame costs nothing."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from vitrail.errors import OptionError
from vitrail.machine import check_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from vitrail.core import Float, Uint8
    from vitrail.session import VisionSession

DEFAULT_LIMIT_BYTES = 256 << 20
KINDS = (b"features", b"embeds")


def check_limit(limit_bytes: int) -> int:
    """The limit, or OptionError for a negative one or one above this machine's memory."""
    if limit_bytes < 0:
        raise OptionError(f"the feature cache's limit is {limit_bytes} bytes; give 0 (off) or more")
    check_memory("the feature cache", limit_bytes, cure="lower its limit")
    return limit_bytes


class FeatureCache:
    """A VisionSession that remembers what tiles of the same content were encoded to, least recently used first out:
    features where it is asked to encode, embeds where it is asked to see.

    limit_bytes bounds what is kept; 0 keeps none. Not for several threads at once.
    """

    def __init__(self, session: VisionSession, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self.limit_bytes = check_limit(limit_bytes)
        self.hits = self.misses = self.size_bytes = 0
        self._session = session
        self._features: OrderedDict[bytes, Float] = OrderedDict()

    def encode(self, tiles: Uint8) -> Float:
        """As the session's; equal tiles are encoded once, known ones not at all."""
        return self._remember(b"features", self._session.encode, tiles)

    def see(self, tiles: Uint8) -> Float:
        """As the session's, and as encode remembers."""
        return self._remember(b"embeds", self._session.see, tiles)

    def _remember(self, kind: bytes, compute: Callable[[Uint8], Float], tiles: Uint8) -> Float:
        if not self.limit_bytes or not len(tiles):
            self.misses += len(tiles)
            return compute(tiles)
        keys = [kind + tile_key(tile) for tile in tiles]
        new = {key: place for place, key in enumerate(keys) if key not in self._features}
        found = {key: self._features[key] for key in keys if key in self._features}
        if new:
            fresh = compute(tiles[list(new.values())])
            found.update(zip(new, fresh, strict=True))
        self.misses += len(new)
        self.hits += len(keys) - len(new)
        for key in keys:
            self._keep(key, found[key])
        return np.stack([found[key] for key in keys])

    def project(self, features: Float) -> Float:
        return self._session.project(features)

    def known(self, tiles: Uint8) -> list[bool]:
        """Which tiles need no encoding."""
        if not self._features:
            return [False] * len(tiles)
        digests = map(tile_key, tiles)
        return [any(kind + digest in self._features for kind in KINDS) for digest in digests]

    def _keep(self, key: bytes, features: Float) -> None:
        if key not in self._features:
            self._features[key] = features.copy()  # a view would keep its whole run alive
            self.size_bytes += features.nbytes
        self._features.move_to_end(key)
        while self.size_bytes > self.limit_bytes:
            self.size_bytes -= self._features.popitem(last=False)[1].nbytes


def tile_key(tile: Uint8) -> bytes:
    """A digest of a tile's pixels: equal for equal tiles only, as far as anybody can tell."""
    return blake2b(np.ascontiguousarray(tile).data, digest_size=16).digest()
