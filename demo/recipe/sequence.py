"""A scene as the token sequence that serving would send, with the positions that are learned: the answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from demo.recipe import oracle
from demo.recipe.evaluation import message
from demo.recipe.render.page import Mark, Page
from demo.recipe.scene import Scene
from demo.recipe.tokenizer import CONTRACT, runtime_tokenizer
from vitrail.core import Control, Segment, Text
from vitrail.prompt import template_segments, turn_segments
from vitrail.tiling import split

TILE, TOKENS_PER_TILE = oracle.TILE, 64
SIDE, SQUARE = 8, 28
# Smaller type than this cannot be told apart by the vision tower, as that of a thumbnail.
LEGIBLE_PX = 17
IGNORED = -100
# Characters of one visual token that are told apart by their order.
ORDER = 3
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """ids and targets [n, P] (targets IGNORED outside answers), and all pictures' tiles or codes in order.

    names [t, 64, ORDER + 2]: the tokens that spell the characters in each visual token's square from the left, and
    the two that stand before them in their line, newest first; a line break where it begins; IGNORED where none is.
    looks [n, P]: where in the sequence the visual token of the character stands that is to be written next, or IGNORED.
    orders [n, P]: how many characters stand to the left of that one in the same square, at most ORDER - 1.
    """

    ids: Tensor
    targets: Tensor
    pictures: Tensor
    codes: Tensor
    names: Tensor
    looks: Tensor
    orders: Tensor


@lru_cache(maxsize=1)
def image_context_id() -> int:
    return int(runtime_tokenizer().encode((Control("<IMG_CONTEXT>"),), 1)[0])


class Spot(NamedTuple):
    """Where a character is printed: its visual token, counted over all pictures, and its order in it from the left."""

    square: int
    order: int


NOWHERE = Spot(IGNORED, 0)


def encode(scene: Scene) -> tuple[Int64, Int64, Int64, Int64]:
    """ids [P] of the whole conversation; targets [P]: the next token where it belongs to an answer; looks [P] and
    orders [P]: the place of the visual token where that token's character is printed, where it is printed once, and
    how many characters that square has to the left of it.
    """
    printed = printed_lines(scene)
    turns: list[tuple[str, tuple[Segment, ...]]] = []
    ids: list[int] = []
    targets: list[int] = []
    looks: list[Spot] = []
    tiles = [tile_count(page) for page in scene.pages]
    for at, turn in enumerate(scene.turns):
        question = message(scene.skill, turn.question, len(tiles)) if at == 0 else turn.question
        turns.append(("user", turn_segments(question, tiles if at == 0 else [])))
        prompt = _ids(template_segments(turns, contract=CONTRACT))  # type: ignore[arg-type]
        answer = [*_ids(turn_segments(turn.answer, [])), *_ids((Control("<|im_end|>"),))]
        targets += [IGNORED] * (len(prompt) - len(ids) - 1) + answer
        looks += [NOWHERE] * (len(prompt) - len(ids) - 1) + _spots(turn.answer, len(answer), printed)
        ids = [*prompt, *answer]
        targets, looks = [*targets, IGNORED], [*looks, NOWHERE]
        turns.append(("assistant", turn_segments(turn.answer, [])))
    places = np.flatnonzero(np.asarray(ids) == image_context_id())
    absolute = [IGNORED if each == NOWHERE else int(places[each.square]) for each in looks]
    return (
        np.asarray(ids),
        np.asarray(targets),
        np.asarray(absolute),
        np.asarray([each.order for each in looks]),
    )


def printed_lines(scene: Scene) -> dict[str, list[Spot]]:
    """Every line that is printed once -> where its characters stand; NOWHERE for spaces."""
    lines: dict[str, list[Spot]] = {}
    twice: set[str] = set()
    first = 0
    for page in scene.pages:
        for words, marks in page.runs:
            (twice.add if words in lines else lambda _: None)(words)
            spots = iter(_ordered(first + _square(page, mark) for mark in marks))
            lines[words] = [NOWHERE if each == " " else next(spots) for each in words]
        first += tile_count(page) * TOKENS_PER_TILE
    return {words: spots for words, spots in lines.items() if words not in twice}


def _ordered(squares: Iterable[int]) -> list[Spot]:
    """The squares of a line's characters from left to right, each with its order in its square."""
    spots: list[Spot] = []
    for square in squares:
        order = spots[-1].order + 1 if spots and spots[-1].square == square else 0
        spots.append(Spot(square, min(order, ORDER - 1)))
    return spots


def _square(page: Page, mark: Mark) -> int:
    """The visual token of a page in whose square a mark has its centre, the nearest where that lies outside."""
    column = int(min(max(mark.x, 0), page.width - 1) // SQUARE)
    row = int(min(max(mark.y, 0), page.height - 1) // SQUARE)
    tile = row // SIDE * (page.width // TILE) + column // SIDE
    return tile * TOKENS_PER_TILE + row % SIDE * SIDE + column % SIDE


def _spots(answer: str, tokens: int, printed: dict[str, list[Spot]]) -> list[Spot]:
    """For each token of an answer and its end where to look; all NOWHERE where tokens are not characters."""
    spots = [
        each for line in answer.split("\n") for each in (*printed.get(line, [NOWHERE] * len(line)), NOWHERE)
    ]
    return spots if len(spots) == tokens else [NOWHERE] * tokens


def batch(scenes: list[Scene], *, pixels: bool) -> Batch:
    """Scenes padded to one length. pictures: uint8 [t, 3, 224, 224], or with pixels=False codes [t, 256, 192]."""
    encoded = [encode(scene) for scene in scenes]
    shape = (len(scenes), max(len(parts[0]) for parts in encoded))
    ids, targets, looks, orders = (np.full(shape, fill) for fill in (0, IGNORED, IGNORED, 0))
    for row, parts in enumerate(encoded):
        for whole, part in zip((ids, targets, looks, orders), parts, strict=True):
            whole[row, : len(part)] = part
    pages = [page for scene in scenes for page in scene.pages]
    codes = torch.from_numpy(np.concatenate([page_codes(page) for page in pages]))
    pictures = torch.from_numpy(np.concatenate([page_tiles(page) for page in pages])) if pixels else codes
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(targets),
        pictures,
        codes,
        torch.from_numpy(np.concatenate([page_names(page) for page in pages])),
        torch.from_numpy(looks),
        torch.from_numpy(orders),
    )


def page_names(page: Page) -> Int64:
    """[tiles, 64, ORDER + 2] as in `Batch.names`; a thumbnail names nothing."""
    names = np.full((tile_count(page), TOKENS_PER_TILE, ORDER + 2), IGNORED)
    squares = names.reshape(-1, ORDER + 2)
    for words, marks in page.runs:
        places = [at for at, each in enumerate(words) if each != " "]
        line = [token_of("\n"), token_of("\n"), *map(token_of, words)]
        for at, (square, order) in zip(places, _ordered(_square(page, mark) for mark in marks), strict=True):
            squares[square, order] = line[at + 2]
            if order == 0:
                squares[square, ORDER:] = line[at + 1], line[at]
    return names


@lru_cache(maxsize=256)
def token_of(character: str) -> int:
    (token,) = _ids((Text(character),))
    return token


def tile_count(page: Page) -> int:
    tiles = (page.width // TILE) * (page.height // TILE)
    return tiles + (tiles > 1)


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
