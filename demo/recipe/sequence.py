"""A scene as the token sequence that serving would send, with the positions that are learned: the answers."""

from __future__ import annotations

from collections.abc import Sequence
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
from demo.recipe.counts import MOST, counted, scene_counts
from demo.recipe.evaluation import message
from demo.recipe.render.dense import TILE
from demo.recipe.render.page import Mark, Page, Tag
from demo.recipe.scene import Scene, Turn
from demo.recipe.spots import (
    BEGINNING,
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
HEADS = slice(ORDER + BEFORE + KEY, ORDER + BEFORE + KEY + HEAD)
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
    counts [n, P, MOST]: for each visual token where those stand that are counted there, and in `tallies` for each answer
    that is a number where those stand that it counts (`recipe.counts`); or IGNORED.
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
    tallies: Tensor


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
    tallies: Int64


def encode(scene: Scene) -> Encoded:
    """The whole conversation. It is told where to look where the answer is printed once, or shown otherwise."""
    printed = printed_lines(scene)
    turns: list[tuple[str, tuple[Segment, ...]]] = []
    ids: list[int] = []
    targets: list[int] = []
    looks: list[Spot] = []
    links: list[tuple[int, ...]] = []
    counts: dict[int, tuple[int, ...]] = {}
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
        counts[len(prompt) - 1] = turn.counted
        ids = [*prompt, *answer]
        targets, looks, links = [*targets, IGNORED], [*looks, NOWHERE], [*links, UNLINKED]
        turns.append(("assistant", turn_segments(turn.answer, [])))
    places = np.flatnonzero(np.asarray(ids) == image_context_id())
    shown = placed(np.asarray([each.square for each in looks]), places)
    orders = [each.order for each in looks]
    wanted = _wanted(scene, looks, links)
    linked = np.asarray(links)
    linked[places] = _earlier(placed(_scene_links(scene.pages), places), places)
    told = (placed(each, places) for each in _counts(scene, places, counts, len(ids)))
    return Encoded(*map(np.asarray, (ids, targets, shown, orders)), wanted, linked, *told)


def _wanted(scene: Scene, looks: list[Spot], links: list[tuple[int, ...]]) -> Int64:
    """`Batch.wanted`; of a shape, whose kind and colour the question names, only the head, where it names that, too."""
    names = np.concatenate([page_names(page) for page in scene.pages]).reshape(-1, KINDS)
    shapes = {
        token_square(page, run.marks[0]) for page in scene.pages[:1] for run in page.runs if run.is_shape
    }
    wanted = np.full((len(looks), KINDS), IGNORED)
    for at, (spot, (*_, head)) in enumerate(zip(looks, links, strict=True)):
        if spot.square in shapes:
            wanted[at, HEADS] = names[spot.square, HEADS] if head != IGNORED else IGNORED
        elif spot.square >= 0:
            wanted[at, ORDER + BEFORE :] = names[spot.square, ORDER + BEFORE :]
            wanted[at, -1] = IGNORED if names[spot.square, -1] == IGNORED else index_name(spot.index)
    return wanted


def _counts(
    scene: Scene, places: Int64, asked_at: dict[int, tuple[int, ...]], length: int
) -> tuple[Int64, Int64]:
    """`Batch.counts` and `tallies` as squares; `asked_at`: where an answer begins, the runs that it counts."""
    counts, tallies = np.full((2, length, MOST), IGNORED)
    counts[places] = scene_counts(scene.pages)
    for at, runs in asked_at.items():
        tallies[at] = counted(scene.pages[0], runs)
    return counts, tallies


def _asked_places(scene: Scene, turn: Turn, prompt: list[int]) -> tuple[int, ...]:
    """Where in a prompt that ends with the turn's question stands what it is about, as `Batch.links` says."""
    question = _ids(turn_segments(turn.question, []))
    last = len(prompt) - len(question)
    start = next(at for at in range(last, -1, -1) if prompt[at : at + len(question)] == question)
    offsets = asked(turn.question, (run.tag for page in scene.pages for run in page.runs))
    return tuple(IGNORED if each == NOT_NAMED else start + token_at(question, each) for each in offsets)


def placed(squares: Int64, places: Int64) -> Int64:
    """Where in the sequence, whose visual tokens are at `places`, squares are that are counted over all pages."""
    there = np.where(squares == BEGINNING.square, 0, IGNORED)
    return np.where(squares >= 0, places[np.maximum(squares, 0)], there)


def _earlier(links: Int64, places: Int64) -> Int64:
    """IGNORED where they are still to come."""
    return np.where(links > places[:, None], IGNORED, links)


def batch(scenes: list[Scene], *, pixels: bool) -> Batch:
    """Scenes padded to one length. pictures: uint8 [t, 3, 224, 224], or with pixels=False what is written of them."""
    encoded = [encode(scene) for scene in scenes]
    length = max(len(parts.ids) for parts in encoded)
    rows = [
        on_device(np.stack([_filled(part, length, fill) for part in parts]))
        for parts, fill in zip(zip(*encoded, strict=True), FILLS, strict=True)
    ]
    ids, targets, looks, orders, wanted, links, *counted_there = rows
    pages = [page for scene in scenes for page in scene.pages]
    codes, covers = (np.concatenate([of(page) for page in pages]) for of in (page_codes, page_covers))
    written = on_device(oracle.written(codes, covers))
    pictures = on_device(np.concatenate([page_tiles(page) for page in pages])) if pixels else written
    names = on_device(np.concatenate([page_names(page) for page in pages]))
    return Batch(
        ids, targets, pictures, on_device(codes), written, names, looks, orders, wanted, links, *counted_there
    )


# What the ends of shorter sequences are filled with, for each part of `Encoded`.
FILLS = Encoded(*map(np.asarray, (0, IGNORED, IGNORED, 0, IGNORED, IGNORED, IGNORED, IGNORED)))


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


def _scene_links(pages: Sequence[Page]) -> Int64:
    """`page_links` of all pages, squares counted over all of them."""
    parts, first = [], 0
    for page in pages:
        links = page_links(page)
        parts.append(np.where(links >= 0, links + first, links))
        first += len(links)
    return np.concatenate(parts)


def page_links(page: Page) -> Int64:
    """[squares, LINKS]: for each printed square those that its row and its column begin with, or IGNORED; for a shape
    the one to its left, the sequence's beginning where there is none.
    """
    links = np.full((tile_count(page) * TOKENS_PER_TILE, LINKS), IGNORED)
    squares = [list(dict.fromkeys(token_square(page, mark) for mark in run.marks)) for run in page.runs]
    heads = {run.heading: of for run, of in reversed(list(zip(page.runs, squares, strict=True)))}
    for number, row in groupby(zip(page.runs, squares, strict=True), lambda each: each[0].tag.number):
        printed = list(row)
        is_row = number is not None and not printed[0][0].is_shape
        begins = [*printed[0][1][:2], IGNORED][:2] if is_row else [IGNORED, IGNORED]
        for run, of in printed:
            beside = BEGINNING.square if run.is_shape and run.tag.head == "" else IGNORED
            head = heads[run.tag.head][0] if run.tag.head in heads else beside
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
