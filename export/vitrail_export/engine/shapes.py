"""Optimization profiles: the shapes that an engine takes. Pure."""

from __future__ import annotations

from vitrail.manifest import EngineProfile, Manifest, Shapes
from vitrail.session.trt_sampler import OPTIONS

OPTIMAL_TILES = 13
"""A picture of twelve tiles and its thumbnail."""


def vision_profile(manifest: Manifest, *, max_tiles: int) -> EngineProfile:
    size = manifest.vision.tile_size
    return _tiles("tiles", (3, size, size), max_tiles)


def projector_profile(manifest: Manifest, *, max_tiles: int) -> EngineProfile:
    return _tiles("features", (manifest.vision.tokens_per_tile, manifest.vision.feature_size), max_tiles)


def _tiles(name: str, each: tuple[int, ...], most: int) -> EngineProfile:
    best = min(OPTIMAL_TILES, most)
    return EngineProfile(
        name="tiles", inputs={name: Shapes(min=(1, *each), opt=(best, *each), max=(most, *each))}
    )


def decoder_profiles(
    manifest: Manifest, *, slots: int, capacity: int, chunk: int
) -> tuple[EngineProfile, EngineProfile]:
    """`decode`: one new token of 1 to `slots` rows. `prefill`: 1 to `chunk` new tokens of one row.

    Every slot holds exactly `capacity` tokens: TensorRT wants caches of a static length.
    """
    decode = _decoder(
        manifest, rows=(1, slots, slots), new=(1, 1, 1), wanted=(0, slots, slots), capacity=capacity
    )
    prefill = _decoder(
        manifest, rows=(1, 1, 1), new=(1, chunk, chunk), wanted=(0, 1, slots), capacity=capacity
    )
    return EngineProfile(name="decode", inputs=decode), EngineProfile(name="prefill", inputs=prefill)


def sampler_profile(manifest: Manifest, *, slots: int) -> EngineProfile:
    rows = (1, slots, slots)
    logits = _shapes(*((n, manifest.decoder.vocab_size) for n in rows))
    options = {name: _shapes(*((n,) for n in rows)) for name in OPTIONS}
    return EngineProfile(name="rows", inputs={"logits": logits, **options})


Range = tuple[int, int, int]


def _decoder(
    manifest: Manifest, *, rows: Range, new: Range, wanted: Range, capacity: int
) -> dict[str, Shapes]:
    contract = manifest.decoder
    cache = _shapes(*((n, contract.kv_heads, capacity, contract.head_dim) for n in rows))
    return {
        "inputs_embeds": _shapes(*((n, s, contract.hidden_size) for n, s in zip(rows, new, strict=True))),
        "past_lengths": _shapes(*((n,) for n in rows)),
        "logit_positions": _shapes(*((n,) for n in wanted)),
        **{f"past.{i}.{kind}": cache for i in range(contract.layers) for kind in ("key", "value")},
    }


def _shapes(least: tuple[int, ...], best: tuple[int, ...], most: tuple[int, ...]) -> Shapes:
    return Shapes(min=least, opt=best, max=most)
