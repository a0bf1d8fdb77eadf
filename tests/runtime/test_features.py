"""The cache of visual features."""

from __future__ import annotations

import numpy as np
import pytest

from vitrail.errors import OptionError
from vitrail.features import FeatureCache, check_limit
from vitrail.session import InSteps


class Counting(InSteps):
    """A vision session of two numbers a tile that keeps what it was asked."""

    def __init__(self):
        self.runs = []

    def encode(self, tiles):
        self.runs.append(len(tiles))
        flat = tiles.reshape(len(tiles), -1).astype(np.float32)
        return np.stack([flat.sum(1), flat[:, 0]], axis=1)[:, None]

    def project(self, features):
        return features


def tiles(*values):
    return np.stack([np.full((3, 4, 4), value, np.uint8) for value in values])


FEATURE_BYTES = 8


def cache(limit=100 * FEATURE_BYTES):
    session = Counting()
    return session, FeatureCache(session, limit_bytes=limit)


def test_only_unknown_tiles_are_encoded_and_the_order_is_kept():
    session, cached = cache()
    cached.encode(tiles(1, 2, 3))
    again, known = cached.encode(tiles(3, 9, 1))
    assert session.runs == [3, 1]
    assert known.tolist() == [True, False, True]
    np.testing.assert_array_equal(again, Counting().encode(tiles(3, 9, 1)))
    assert (cached.hits, cached.misses) == (2, 4)


def test_what_is_seen_is_remembered_apart_from_what_is_encoded():
    session, cached = cache()
    assert cached.see(tiles(1, 2)).known.tolist() == [False, False]
    embeds, known = cached.see(tiles(2, 3))
    assert known.tolist() == [True, False]
    np.testing.assert_array_equal(embeds, Counting().see(tiles(2, 3)))
    assert not cached.encode(tiles(1)).known.any()
    assert session.runs == [2, 1, 1]


def test_equal_tiles_of_one_call_are_encoded_once():
    session, cached = cache()
    np.testing.assert_array_equal(cached.encode(tiles(5, 6, 5)).rows, Counting().encode(tiles(5, 6, 5)))
    assert session.runs == [2]


def test_a_tile_that_differs_in_one_pixel_is_another():
    session, cached = cache()
    first, other = tiles(1), tiles(1)
    other[0, 2, 3, 3] = 2
    cached.encode(first)
    cached.encode(other)
    assert session.runs == [1, 1]


def test_the_least_recently_used_goes_when_the_limit_is_reached():
    session, cached = cache(limit=2 * FEATURE_BYTES)
    cached.encode(tiles(1, 2))
    cached.encode(tiles(1))
    cached.encode(tiles(3))
    assert cached.size_bytes == 2 * FEATURE_BYTES
    assert session.runs == [2, 1]
    assert cached.encode(tiles(1, 2, 3)).known.tolist() == [True, False, True]


def test_a_request_larger_than_the_cache_is_answered_whole():
    _, cached = cache(limit=2 * FEATURE_BYTES)
    many = tiles(*range(6))
    np.testing.assert_array_equal(cached.encode(many).rows, Counting().encode(many))
    assert cached.size_bytes <= cached.limit_bytes


def test_a_limit_of_zero_turns_it_off():
    session, cached = cache(limit=0)
    cached.encode(tiles(1))
    assert not cached.encode(tiles(1)).known[0]
    assert session.runs == [1, 1]
    assert (cached.hits, cached.misses) == (0, 2)


def test_a_limit_above_the_memory_is_refused():
    with pytest.raises(OptionError, match=r"the feature cache may take 1024\.0 GiB.*; lower its limit"):
        check_limit(1 << 40)


def test_a_negative_limit_is_refused_with_a_cure():
    with pytest.raises(OptionError, match=r"is -1 bytes; give 0 \(off\) or more"):
        FeatureCache(Counting(), limit_bytes=-1)
