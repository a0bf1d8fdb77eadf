"""From a picture's source to its tiles; those of files that were cut before are kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vitrail.digest import digest
from vitrail.images import open_image
from vitrail.tiling import choose_grid, split

if TYPE_CHECKING:
    from vitrail.core import Grid, Uint8
    from vitrail.images import ImageSource

KEPT_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Cutting:
    """How a picture is opened and cut: see PromptOptions; tile_size in pixels."""

    max_tiles: int
    tile_size: int
    thumbnail: bool
    rotate: bool = False


class Cut(NamedTuple):
    """uint8 tiles [n, 3, S, S], the picture's size in pixels and the grid that it was cut by."""

    tiles: Uint8
    size: tuple[int, int]
    grid: Grid


def cut_picture(source: ImageSource, how: Cutting) -> Cut:
    """Raises ImageError, or OptionError for max_tiles."""
    image = open_image(source, rotate=how.rotate)
    tiles = split(image, max_tiles=how.max_tiles, tile_size=how.tile_size, thumbnail=how.thumbnail)
    grid = choose_grid(*image.size, max_tiles=how.max_tiles, tile_size=how.tile_size)
    return Cut(tiles, image.size, grid)


class Pictures:
    """`cut_picture` that keeps what it cut, least recently used first out: every turn of a conversation shows the
    pictures of those before.

    Files are known by their content where they come as bytes or as a data: URL; others are cut each time. limit_bytes
    bounds the tiles that are kept, which are read-only. Safe from every thread.
    """

    def __init__(self, *, limit_bytes: int = KEPT_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self._cuts: OrderedDict[tuple[bytes, Cutting], Cut] = OrderedDict()
        self._lock = threading.Lock()

    def cut(self, source: ImageSource, how: Cutting) -> Cut:
        """As cut_picture."""
        content = _content(source)
        if content is None:
            return cut_picture(source, how)
        key = digest(content), how
        with self._lock:
            found = self._cuts.get(key)
            if found is not None:
                self._cuts.move_to_end(key)
                return found
        made = cut_picture(source, how)
        made.tiles.flags.writeable = False
        self._keep(key, made)
        return made

    def _keep(self, key: tuple[bytes, Cutting], cut: Cut) -> None:
        with self._lock:
            if key in self._cuts:  # by another thread, meanwhile
                return
            self._cuts[key] = cut
            self.size_bytes += cut.tiles.nbytes
            while self.size_bytes > self.limit_bytes:
                self.size_bytes -= self._cuts.popitem(last=False)[1].tiles.nbytes


def _content(source: ImageSource) -> bytes | None:
    """What a source is known by; None where it would have to be read first, or may change."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, str) and source[:5].lower() == "data:":
        return source.encode("utf-8", "surrogatepass")
    return None
