"""A scene as the token sequence that serving would send, with the positions that are learned: the answers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from string import ascii_lowercase
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from demo.recipe import oracle
from demo.recipe.asked import NOT_NAMED, asked, token_at
from demo.recipe.counts import COUNTS, MOST, is_shape, scene_counts
from demo.recipe.evaluation import message
from demo.recipe.render.dense import TILE
from demo.recipe.render.page import Mark, Page, Tag
from demo.recipe.scene import Scene, Turn
from demo.recipe.spots import (
    IGNORED,
    NOWHERE,
    ORDER,
    TOKENS_PER_TILE,
    Spot,
    answer_spots,
    ordered,
    printed_lines,
    tile_count,
    token_square,
)
from demo.recipe.state import on_device
from demo.recipe.tokenizer import CONTRACT, runtime_tokenizer
from vitrail.core import Control, Segment, Text
from vitrail.prompt import template_segments, turn_segments
from vitrail.tiling import split

# Smaller type than this cannot be told apart by the vision tower, as that of a thumbnail.
LEGIBLE_PX = 17
# Characters that are told of what stands before, of a row's key and of a column's head; the number; which of its row
# a line is; the index.
BEFORE, KEY, HEAD, NUMBER, COLUMN, INDEX = 2, 3, 2, 1, 1, 1
KINDS = ORDER + BEFORE + KEY + HEAD + NUMBER + COLUMN + INDEX
# Visual tokens that each is told to look at: the first two of its row, and the first of its column's head.
LINKS = 3
UNLINKED = (IGNORED,) * LINKS
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """ids and targets [n, P] (targets IGNORED outside answers), and all pictures' tiles or codes in order.

    `written`: what a perfect vision tower writes for the tiles, in AMPLITUDEs; `codes`: its shares of classes.
    names [t, 64, KINDS]: the tokens that spell the characters in each visual token's square from the left; the two
    that stand before them in their line, newest first, a line break where it begins; the first three of their row's
    key and the first two of their column's head, line breaks where it is shorter; their number; which of their row
    they are; how many characters of their line stand before the first of them; IGNORED where none is. In a corner of
    a shape, the digits of the number that it says of its box, a line break where it is shorter.
    looks [n, P]: where in the sequence the visual token of the character stands that is to be written next, or IGNORED.
    orders [n, P]: how many characters stand to the left of that one in the same square, at most ORDER - 1.
    wanted [n, P, KINDS]: the names of that visual token from the key on, with the character's own index.
    links [n, P, LINKS]: for each visual token where those stand that its row and its column begin with, and for each
    token of an answer where the question names these; or IGNORED.
    counts [n, P, COUNTS, MOST]: for each visual token where those stand that it is counted with (`recipe.counts`).
    """

    ids: Tensor
    targets: Tensor
    pictures: Tensor
    codes: Tensor
    written: Tensor
    names: Tensor
    looks: Tensor
    orders: Tensor
    wanted: Tensor
    links: Tensor
    counts: Tensor


@lru_cache(maxsize=1)
def image_context_id() -> int:
    return int(runtime_tokenizer().encode((Control("<IMG_CONTEXT>"),), 1)[0])


class Encoded(NamedTuple):
    """A scene's rows of a `Batch`."""

    ids: Int64
    targets: Int64
    looks: Int64
    orders: Int64
    wanted: Int64
    links: Int64
    counts: Int64


def encode(scene: Scene) -> Encoded:
    """The whole conversation. It is told where to look where the answer is printed once, or shown otherwise."""
    printed = printed_lines(scene)
    turns: list[tuple[str, tuple[Segment, ...]]] = []
    ids: list[int] = []
    targets: list[int] = []
    looks: list[Spot] = []
    links: list[tuple[int, ...]] = []
    tiles = [tile_count(page) for page in scene.pages]
    for at, turn in enumerate(scene.turns):
        question = message(scene.skill, turn.question, len(tiles)) if at == 0 else turn.question
        turns.append(("user", turn_segments(question, tiles if at == 0 else [])))
        prompt = _ids(template_segments(turns, contract=CONTRACT))  # type: ignore[arg-type]
        answer = [*_ids(turn_segments(turn.answer, [])), *_ids((Control("<|im_end|>"),))]
        targets += [IGNORED] * (len(prompt) - len(ids) - 1) + answer
        looks += [NOWHERE] * (len(prompt) - len(ids) - 1) + answer_spots(scene, turn, answer, printed)
        links += [UNLINKED] * (len(prompt) - len(ids) - 1)
        links += [_asked_places(scene, turn, prompt)] * len(answer)
        ids = [*prompt, *answer]
        targets, looks, links = [*targets, IGNORED], [*looks, NOWHERE], [*links, UNLINKED]
        turns.append(("assistant", turn_segments(turn.answer, [])))
    places = np.flatnonzero(np.asarray(ids) == image_context_id())
    absolute = [IGNORED if each == NOWHERE else int(places[each.square]) for each in looks]
    names = np.concatenate([page_names(page) for page in scene.pages]).reshape(-1, KINDS)
    wanted = np.full((len(ids), KINDS), IGNORED)
    for at, spot in enumerate(looks):
        if spot != NOWHERE:
            wanted[at, ORDER + BEFORE :] = names[spot.square, ORDER + BEFORE :]
            wanted[at, -1] = IGNORED if names[spot.square, -1] == IGNORED else index_name(spot.index)
    orders = [each.order for each in looks]
    linked = np.asarray(links)
    linked[places] = _absolute(np.concatenate([page_links(page) for page in scene.pages]), scene, places)
    counts = np.full((len(ids), COUNTS, MOST), IGNORED)
    squares = scene_counts(scene.pages)
    counts[places] = np.where(squares == IGNORED, IGNORED, places[np.maximum(squares, 0)])
    return Encoded(*map(np.asarray, (ids, targets, absolute, orders)), wanted, linked, counts)


def _asked_places(scene: Scene, turn: Turn, prompt: list[int]) -> tuple[int, ...]:
    """Where in a prompt that ends with the turn's question stands what it is about, as `Batch.links` says."""
    question = _ids(turn_segments(turn.question, []))
    last = len(prompt) - len(question)
    start = next(at for at in range(last, -1, -1) if prompt[at : at + len(question)] == question)
    offsets = asked(turn.question, (run.tag for page in scene.pages for run in page.runs))
    return tuple(IGNORED if each == NOT_NAMED else start + token_at(question, each) for each in offsets)


def _absolute(links: Int64, scene: Scene, places: Int64) -> Int64:
    """Squares counted by page [m, LINKS] -> places in the sequence; IGNORED where they are still to come."""
    squares = [tile_count(page) * TOKENS_PER_TILE for page in scene.pages]
    first = np.repeat(np.cumsum([0, *squares[:-1]]), squares)[:, None]
    there = places[np.where(links == IGNORED, 0, links + first)]
    return np.where((links == IGNORED) | (there > places[:, None]), IGNORED, there)


def batch(scenes: list[Scene], *, pixels: bool) -> Batch:
    """Scenes padded to one length. pictures: uint8 [t, 3, 224, 224], or with pixels=False what is written of them."""
    encoded = [encode(scene) for scene in scenes]
    length = max(len(parts.ids) for parts in encoded)
    rows = [
        on_device(np.stack([_filled(part, length, fill) for part in parts]))
        for parts, fill in zip(zip(*encoded, strict=True), FILLS, strict=True)
    ]
    ids, targets, looks, orders, wanted, links, counts = rows
    pages = [page for scene in scenes for page in scene.pages]
    codes, covers = (np.concatenate([of(page) for page in pages]) for of in (page_codes, page_covers))
    written = on_device(oracle.written(codes, covers))
    pictures = on_device(np.concatenate([page_tiles(page) for page in pages])) if pixels else written
    names = on_device(np.concatenate([page_names(page) for page in pages]))
    return Batch(
        ids, targets, pictures, on_device(codes), written, names, looks, orders, wanted, links, counts
    )


# What the ends of shorter sequences are filled with, for each part of `Encoded`.
FILLS = Encoded(*map(np.asarray, (0, IGNORED, IGNORED, 0, IGNORED, IGNORED, IGNORED)))


def _filled(part: Int64, length: int, fill: Int64) -> Int64:
    whole = np.full((length, *part.shape[1:]), fill)
    whole[: len(part)] = part
    return whole


def page_names(page: Page) -> Int64:
    """[tiles, 64, KINDS] as in `Batch.names`; a thumbnail names nothing."""
    names = np.full((tile_count(page), TOKENS_PER_TILE, KINDS), IGNORED)
    squares, end = names.reshape(-1, KINDS), token_of("\n")
    for run in page.runs:
        places = [at for at, each in enumerate(run.pieces) if each != " "]
        line = [end, end, *map(token_of, run.pieces)]
        spots = ordered(token_square(page, mark) for mark in run.marks)
        for at, (square, order, _) in zip(places, spots, strict=True):
            squares[square, order] = line[at + 2]
            if order == 0:
                squares[square, ORDER:] = line[at + 1], line[at], *tag_names(run.tag), index_name(at)
                if run.words == run.tag.key:
                    # Of its own beginning it has only seen so much.
                    squares[square, ORDER + BEFORE :][at + 1 : KEY] = IGNORED
    for number in page.corners:
        spelled = squares[token_square(page, number.marks[0]), :ORDER]
        if (spelled == IGNORED).all():
            spelled[:] = _first(number.words, ORDER)
    return names


def page_links(page: Page) -> Int64:
    """[squares, LINKS]: for each printed square those that its row and its column begin with, or IGNORED."""
    links = np.full((tile_count(page) * TOKENS_PER_TILE, LINKS), IGNORED)
    squares = [list(dict.fromkeys(token_square(page, mark) for mark in run.marks)) for run in page.runs]
    heads = {run.words: of for run, of in reversed(list(zip(page.runs, squares, strict=True)))}
    for number, row in groupby(zip(page.runs, squares, strict=True), lambda each: each[0].tag.number):
        printed = list(row)
        is_row = number is not None and not is_shape(printed[0][0])
        begins = [*printed[0][1][:2], IGNORED][:2] if is_row else [IGNORED, IGNORED]
        for run, of in printed:
            head = heads[run.tag.head][0] if run.tag.head in heads else IGNORED
            links[of] = *begins, head
    return links


@lru_cache(maxsize=4096)
def tag_names(tag: Tag) -> tuple[int, ...]:
    counts = (IGNORED if each is None else token_of(str(min(each, 9))) for each in (tag.number, tag.column))
    return *_first(tag.key, KEY), *_first(tag.head, HEAD), *counts


def index_name(index: int) -> int:
    """The letter that stands for an index; all from the last letter on share it."""
    return token_of(ascii_lowercase[min(index, len(ascii_lowercase) - 1)])


def _first(words: str | None, count: int) -> tuple[int, ...]:
    if words is None:
        return (IGNORED,) * count
    return tuple(map(token_of, words[:count].ljust(count, "\n")))


@lru_cache(maxsize=256)
def token_of(character: str) -> int:
    (token,) = _ids((Text(character),))
    return token


def page_tiles(page: Page) -> npt.NDArray[np.uint8]:
    """The tiles as serving cuts them, thumbnail last."""
    assert page.image is not None
    return split(page.image, max_tiles=CONTRACT.max_tiles, tile_size=TILE, thumbnail=CONTRACT.thumbnail)


def page_codes(page: Page) -> oracle.Float32:
    """What a perfect vision tower would write for these tiles, shares of 0..1 [tiles, 256, 192]."""
    columns, rows = page.width // TILE, page.height // TILE
    codes = oracle.tile_codes(oracle.code_map(page.marks, columns=columns, rows=rows))
    if columns * rows == 1:
        return codes
    thumbnail = oracle.code_map(_shrunk(page), columns=1, rows=1)
    return np.concatenate([codes, oracle.tile_codes(thumbnail)])


def page_covers(page: Page) -> oracle.Int64:
    """What covers each half of each patch, classes [tiles, 256, 2]."""
    columns, rows = page.width // TILE, page.height // TILE
    covers = oracle.tile_covers(oracle.cover_map(page.marks, columns=columns, rows=rows))
    if columns * rows == 1:
        return covers
    thumbnail = oracle.cover_map(_shrunk(page), columns=1, rows=1)
    return np.concatenate([covers, oracle.tile_covers(thumbnail)])


def _shrunk(page: Page) -> list[Mark]:
    across, down = TILE / page.width, TILE / page.height
    smaller = (
        Mark(kind, x * across, y * down, width * across, height * down)
        for kind, x, y, width, height in page.marks
    )
    return [mark for mark in smaller if mark.height > LEGIBLE_PX]


def _ids(segments: tuple[Segment, ...]) -> list[int]:
    return [int(each) for each in runtime_tokenizer().encode(segments, TOKENS_PER_TILE)]
