"""A cache of visual features: a picture that is seen again, a shared thumbnail or an equal video frame costs nothing."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vitrail.digest import digest
from vitrail.errors import OptionError
from vitrail.machine import check_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from vitrail.core import Float, Uint8
    from vitrail.session import VisionSession

DEFAULT_LIMIT_BYTES = 128 << 20


def check_limit(limit_bytes: int) -> int:
    """The limit, or OptionError for a negative one or one above this machine's memory."""
    if limit_bytes < 0:
        raise OptionError(f"the feature cache's limit is {limit_bytes} bytes; give 0 (off) or more")
    check_memory("the feature cache", limit_bytes, cure="lower its limit")
    return limit_bytes


class Recalled(NamedTuple):
    """Of n tiles: features or embeds [n, ...], and which of them were known before, bool [n]."""

    rows: Float
    known: npt.NDArray[np.bool_]


class FeatureCache:
    """What the tiles that a VisionSession is shown were encoded to, least recently used first out: features where it is
    asked to encode, embeds where it is asked to see.

    limit_bytes bounds what is kept; 0 keeps none. Not for several threads at once.
    """

    def __init__(self, session: VisionSession, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self.limit_bytes = check_limit(limit_bytes)
        self.hits = self.misses = self.size_bytes = 0
        self._session = session
        self._features: OrderedDict[bytes, Float] = OrderedDict()

    def encode(self, tiles: Uint8) -> Recalled:
        """The session's features; equal tiles are encoded once, known ones not at all."""
        return self._recall(b"features", self._session.encode, tiles)

    def see(self, tiles: Uint8) -> Recalled:
        """The session's embeds, as encode remembers features."""
        return self._recall(b"embeds", self._session.see, tiles)

    def _recall(self, kind: bytes, compute: Callable[[Uint8], Float], tiles: Uint8) -> Recalled:
        if not self.limit_bytes or not len(tiles):
            self.misses += len(tiles)
            return Recalled(compute(tiles), np.zeros(len(tiles), np.bool_))
        keys = [kind + digest(tile) for tile in tiles]
        known = [key in self._features for key in keys]
        new = {key: place for place, key in enumerate(keys) if not known[place]}
        found = {key: self._features[key] for key in keys if key not in new}
        if new:
            fresh = compute(tiles if len(new) == len(tiles) else tiles[list(new.values())])
            found.update(zip(new, fresh, strict=True))
        self.misses += len(new)
        self.hits += len(keys) - len(new)
        for key in keys:
            self._keep(key, found[key])
        return Recalled(np.stack([found[key] for key in keys]), np.array(known))

    def _keep(self, key: bytes, features: Float) -> None:
        if key not in self._features:
            self._features[key] = features.copy()  # a view would keep its whole run alive
            self.size_bytes += features.nbytes
        self._features.move_to_end(key)
        while self.size_bytes > self.limit_bytes:
            self.size_bytes -= self._features.popitem(last=False)[1].nbytes
