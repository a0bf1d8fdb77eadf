"""Opening pictures: whatever the source, an RGB picture or an ImageError that says what is wrong with it."""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, TypeAlias
from urllib.parse import unquote_to_bytes

from PIL import Image, ImageOps

from vitrail.errors import ImageError

MAX_PIXELS = 100_000_000
# Those that Pillow decodes by itself: its EPS plugin, for one, hands the file to Ghostscript. TGA knows no signature
# and comes last. A Pillow built without one of them does without.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "TGA")

ImageSource: TypeAlias = "str | Path | bytes | Image.Image"

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://")
_DATA_URL = re.compile(r"data:(?P<type>[^,]*),(?P<data>.*)", re.DOTALL | re.IGNORECASE)
_NUMBER = re.compile(r"\d+")
_CURE = "give a path, bytes, a PIL image or a data: URL"


def open_image(source: ImageSource, *, rotate: bool = False) -> Image.Image:
    """The first frame of a picture, decoded to RGB as Pillow's `convert("RGB")` does it.

    source: a path (str or Path), the bytes of a picture file of one of FORMATS, a PIL image, or a data: URL. Nothing
    is ever fetched, and no other program run. rotate: follow the EXIF orientation, which the reference ignores.
    Raises ImageError for whatever is no whole picture of 1 to MAX_PIXELS pixels.
    """
    if isinstance(source, Image.Image):
        return _decode(source, name="the PIL image", rotate=rotate)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _read(BytesIO(source), name=f"the picture of {len(source)} bytes", rotate=rotate)
    if isinstance(source, str) and source[:5].lower() == "data:":
        content = _data_url_bytes(source)
        return _read(BytesIO(content), name=f"the data: URL's picture of {len(content)} bytes", rotate=rotate)
    if isinstance(source, (str, Path)):
        with _open_file(source) as file:
            return _read(file, name=f"'{_shown(source)}'", rotate=rotate)
    raise ImageError(f"a picture cannot be of type {type(source).__name__}; {_CURE}")


def _shown(source: str | Path) -> str:
    text = str(source)
    return text if len(text) <= 120 else f"{text[:100]}… ({len(text)} characters)"


@contextmanager
def _open_file(source: str | Path) -> Iterator[BinaryIO]:
    """The opened file; only a regular file, because a pipe or a device may never end."""
    if found := _URL.match(str(source)):
        raise ImageError(
            f"'{_shown(source)}' is a URL, and vitrail fetches none ({found['scheme'].lower()}); "
            "download the picture and give its path, or its content as a data: URL"
        )
    try:
        path = Path(source)
        if path.exists() and not path.is_file():
            raise ImageError(f"'{_shown(source)}' is no regular file; {_CURE}")
        file = path.open("rb")
    except FileNotFoundError as error:
        raise ImageError(f"no picture at '{_shown(source)}'; check the path") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"'{_shown(source)}' cannot be opened: {reason}; {_CURE}") from error
    with file:
        yield file


def _data_url_bytes(url: str) -> bytes:
    found = _DATA_URL.match(url)
    if found is None:
        raise ImageError(f"data: URL '{_shown(url)}' has no comma; write data:image/png;base64,…")
    try:
        data = unquote_to_bytes(found["data"])
    except UnicodeEncodeError as error:
        raise ImageError(
            f"the data: URL of {len(url)} characters is no valid Unicode ({error}); "
            "write bytes as %XX, or the whole file as base64"
        ) from error
    if not found["type"].lower().endswith(";base64"):
        return data
    try:
        return base64.b64decode(b"".join(data.split()), validate=True)
    except binascii.Error as error:
        raise ImageError(
            f"the data: URL's base64 of {len(found['data'])} characters is broken ({error}); "
            "encode the whole file with standard base64, padding included"
        ) from error


def _read(file: BinaryIO, *, name: str, rotate: bool) -> Image.Image:
    if not file.read(1):
        raise ImageError(f"{name} is empty (0 bytes); give a whole picture file")
    with _pillow_errors(name):
        image = _identified(file)
    if image is None:
        raise ImageError(
            f"{name} is no picture in a format that vitrail reads; convert it to one of these: {', '.join(FORMATS)}"
        )
    with image:
        return _decode(image, name=name, rotate=rotate)


def _identified(file: BinaryIO) -> Image.Image | None:
    """The picture, its pixels unread; None where it is in none of FORMATS.

    Image.open would do, but it checks a size limit of its own with a warning, and what it takes to silence a warning
    (`warnings.catch_warnings`) is shared by all threads.
    """
    Image.init()
    file.seek(0)
    start = file.read(16)
    for factory, accepts in (Image.OPEN[known] for known in FORMATS if known in Image.OPEN):
        # accepts may also return words: why this Pillow cannot read the format.
        if accepts is None or accepts(start) is True:
            file.seek(0)
            with suppress(SyntaxError, IndexError, TypeError, struct.error):  # this is how a plugin says no
                return factory(file, "")
    return None


def _decode(image: Image.Image, *, name: str, rotate: bool) -> Image.Image:
    """Check the size, which the header tells, then read every pixel, so that a truncated file fails here."""
    pixels = image.width * image.height
    if pixels == 0:
        raise ImageError(f"{name} has {image.width}x{image.height} pixels; give one of at least 1x1")
    if pixels > MAX_PIXELS:
        raise ImageError(
            f"{name} has {image.width}x{image.height} = {pixels} pixels, the limit is {MAX_PIXELS}; scale it down"
        )
    with _pillow_errors(name):
        image.load()
        turned = ImageOps.exif_transpose(image) if rotate else image
        return turned if turned.mode == "RGB" else turned.convert("RGB")


@contextmanager
def _pillow_errors(name: str) -> Iterator[None]:
    """Pillow's errors as ImageError."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{name} is over the limit of {MAX_PIXELS} pixels ({error}); scale it down"
        ) from error
    except Exception as error:  # Pillow's decoders raise anything on damaged data
        raise ImageError(f"{name} is damaged or cut off ({error}); give a whole picture file") from error
