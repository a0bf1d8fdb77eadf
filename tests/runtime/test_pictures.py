"""Pictures that were cut before."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from vitrail.errors import ImageError
from vitrail.pictures import Cutting, Pictures, cut_picture

HOW = Cutting(max_tiles=6, tile_size=28, thumbnail=True)


def file(seed, *, size=(56, 28)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def is_kept(pictures, source, how=HOW):
    return pictures.cut(source, how).tiles is pictures.cut(source, how).tiles


def test_a_file_that_comes_again_is_not_cut_again():
    pictures = Pictures()
    first = pictures.cut(file(1), HOW)
    again = pictures.cut(bytearray(file(1)), HOW)
    assert again.tiles is first.tiles
    expected = cut_picture(file(1), HOW)
    np.testing.assert_array_equal(again.tiles, expected.tiles)
    assert again[1:] == expected[1:]


def test_a_data_url_is_known_by_its_text():
    assert is_kept(Pictures(), f"data:image/png;base64,{base64.b64encode(file(1)).decode()}")


def test_another_file_or_another_cutting_is_another_picture():
    pictures = Pictures()
    whole = Cutting(max_tiles=1, tile_size=28, thumbnail=True)
    pictures.cut(file(1), HOW)
    for source, how in ((file(2), HOW), (file(1), whole)):
        np.testing.assert_array_equal(pictures.cut(source, how).tiles, cut_picture(source, how).tiles)


def test_what_may_change_without_its_name_is_cut_each_time(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(file(1))
    image = Image.open(io.BytesIO(file(1)))
    for source in (path, str(path), image):
        assert not is_kept(Pictures(), source)


def test_the_least_recently_used_goes_when_the_limit_is_reached():
    size = cut_picture(file(1), HOW).tiles.nbytes
    pictures = Pictures(limit_bytes=2 * size)
    for seed in (1, 2):
        pictures.cut(file(seed), HOW)
    first = pictures.cut(file(1), HOW).tiles
    pictures.cut(file(3), HOW)
    assert pictures.size_bytes == 2 * size
    assert pictures.cut(file(1), HOW).tiles is first


def test_a_picture_above_the_limit_is_cut_and_not_kept():
    pictures = Pictures(limit_bytes=1)
    assert not is_kept(pictures, file(1))
    assert pictures.size_bytes == 0


def test_what_is_kept_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        Pictures().cut(file(1), HOW).tiles[0] = 0


def test_a_file_that_is_no_picture_is_refused_each_time():
    pictures = Pictures()
    for _ in range(2):
        with pytest.raises(ImageError, match="no picture"):
            pictures.cut(b"no picture at all", HOW)
