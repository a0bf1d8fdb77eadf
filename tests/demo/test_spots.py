"""Where the language model is told to look, on scenes whose contents are known."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

torch = pytest.importorskip("torch")

from demo.recipe import questions  # noqa: E402
from demo.recipe.counts import MOST, scene_counts  # noqa: E402
from demo.recipe.render import fonts  # noqa: E402
from demo.recipe.render.dense import TILE  # noqa: E402
from demo.recipe.render.page import Page, Tag, Type  # noqa: E402
from demo.recipe.scene import Brush, Scene, Turn  # noqa: E402
from demo.recipe.scenes import MAKERS  # noqa: E402
from demo.recipe.sequence import (  # noqa: E402
    BEFORE,
    HEAD,
    HEADS,
    KEY,
    KINDS,
    batch,
    encode,
    image_context_id,
    page_names,
)
from demo.recipe.spots import IGNORED, ORDER, token_square  # noqa: E402
from demo.recipe.tokenizer import runtime_tokenizer  # noqa: E402
from demo.recipe.train_text import counted_loss  # noqa: E402

pytestmark = pytest.mark.skipif(not fonts.are_installed(), reason=f"needs {fonts.PACKAGES}")
FIRST_KEY = ORDER + BEFORE
FIRST_HEAD, NUMBER = FIRST_KEY + KEY, FIRST_KEY + KEY + HEAD


def test_the_place_to_look_at_holds_the_character_to_write():
    """On a page of several tiles: the visual token of each character of a printed answer is the one above it."""
    page = Page(448, 448, draws=False)
    style = Type("dejavu/DejaVuSansMono", 40, (0, 0, 0))
    page.text(180.0, 300.0, "AB3", style)
    scene = Scene("signs", (page,), (Turn("Read the text.", "AB3"),))
    ids, targets, looks, *_ = encode(scene)
    first = int(np.flatnonzero(ids == image_context_id())[0])
    squares = [(int(mark.x // 28), int(mark.y // 28)) for mark in page.marks]
    expected = [first + 64 * (2 + x // 8) + y % 8 * 8 + x % 8 for x, y in squares]
    assert [int(each) for each in looks[looks != IGNORED]] == expected
    assert (targets[looks != IGNORED] != IGNORED).all()


def test_characters_of_one_visual_token_are_told_apart_by_their_order():
    page = Page(224, 224, draws=False)
    page.text(30.0, 50.0, "1M234", Type("dejavu/DejaVuSansMono", 20, (0, 0, 0)))
    scene = Scene("codes", (page,), (Turn("Read the text.", "1M234"),))
    _, _, looks, orders, *_ = encode(scene)
    there = looks != IGNORED
    squares = [int(mark.x // 28) for mark in page.marks]
    assert squares == [1, 1, 2, 2, 3]
    assert orders[there].tolist() == [0, 1, 0, 1, 0]
    names = batch([scene], pixels=False).names[0].reshape(8, 8, KINDS)
    row = int(page.marks[0].y // 28)
    spelled = [_spelled(names[row, column, : ORDER + BEFORE]) for column in (1, 2, 3)]
    assert spelled == ["1M\n\n", "23M1", "432"]
    assert _spelled(names[row, [1, 2, 3], -1]) == "ace"
    assert _spelled(encode(scene).wanted[there, -1]) == "abcde"


def test_each_number_of_a_box_is_read_off_the_corner_that_says_it():
    """As if it were printed there: its digits name that corner's visual token, one after the other."""
    corners = 0
    for seed in range(8):
        scene = MAKERS["boxes"](Brush(random.Random(seed), draws=False))
        turn = scene.turns[0]
        names = batch([scene], pixels=False).names[0]
        orders = encode(Scene(scene.skill, scene.pages, (turn,))).orders
        digits = [(token, square) for token, square in _told(scene, turn) if token.isdigit()]
        for number, (column, row) in zip(turn.box, ((0, 1), (2, 1), (2, 3), (0, 3)), strict=True):
            told, digits = digits[: len(str(number))], digits[len(str(number)) :]
            (square,) = {square for _, square in told}
            for place, side in ((square % 8, column), (square // 8, row)):
                # It holds the corner, up to the half cell by which covers are rounded.
                assert place * 28 - 8 <= turn.box[side] * 224 / 1000 <= place * 28 + 28 + 8
            if (names[square, ORDER:] == IGNORED).all():
                assert _spelled(names[square, :ORDER]) == "".join(token for token, _ in told).ljust(
                    ORDER, "\n"
                )
                corners += 1
        assert {0, 1, 2} == set(orders[orders >= 0].tolist())
    assert corners >= 24


def test_the_value_of_a_bar_is_read_off_its_label():
    scene = MAKERS["bar_charts"](Brush(random.Random(5), draws=False))
    (page,) = scene.pages
    names = batch([scene], pixels=False).names.flatten(0, 1)
    turns = [turn for turn in scene.turns if turn.question.startswith("What is the value")]
    assert turns
    for turn in turns:
        label = page.runs[turn.shown]
        assert label.words in turn.question
        (square,) = {square for _, square in _told(scene, turn)[:-1]}
        assert square == token_square(page, label.marks[0])
        assert _spelled(names[square, FIRST_HEAD:NUMBER]).strip() == turn.answer


def test_which_picture_is_told_by_the_end_of_the_number_on_it():
    for seed in range(8):
        scene = MAKERS["two_pictures"](Brush(random.Random(seed), draws=False))
        (turn,) = (each for each in scene.turns if each.question.startswith("Which picture"))
        number = int(turn.answer[-2])
        page = scene.pages[number - 1]
        (square,) = {square for _, square in _told(scene, turn)[:-1]}
        assert square == 64 * (number - 1) + token_square(page, page.runs[0].marks[-1])


def _told(scene, turn):
    """Each token of a turn's answer and the visual token, over all pictures, where it is told to look; None nowhere."""
    encoded = encode(Scene(scene.skill, scene.pages, (turn,)))
    places = np.flatnonzero(encoded.ids == image_context_id()).tolist()
    squares = [places.index(int(each)) if each != IGNORED else None for each in encoded.looks]
    answer = encoded.targets != IGNORED
    tokens = [runtime_tokenizer().decode([int(each)], keep_special=True) for each in encoded.targets[answer]]
    return list(zip(tokens, np.asarray(squares, object)[answer].tolist(), strict=True))


def test_attention_is_told_where_a_row_begins_and_where_the_question_names_it():
    scene = MAKERS["receipts"](Brush(random.Random(3), draws=False, questions=8), grid=(2, 2))
    (page,) = scene.pages
    encoded = encode(scene)
    first = int(np.flatnonzero(encoded.ids == image_context_id())[0])
    line, price = page.runs[1], page.runs[2]
    told = encoded.links[first + token_square(page, price.marks[0]), 0]
    assert told == first + token_square(page, line.marks[0])
    named = {int(each) for each in encoded.links[encoded.targets != IGNORED][:, 0]} - {IGNORED}
    begun = {_spelled([encoded.ids[at]]).strip() for at in named}
    assert {"total"} < begun
    assert begun <= {*(run.words[0] for run in page.runs), "total", "shop"}


def test_a_row_is_counted_where_it_begins_with_those_before_it():
    """Over several tiles, the row of heads left out; in the sequence, where they stand."""
    scene = MAKERS["tables"](Brush(random.Random(3), draws=False), grid=(3, 2))
    (page,) = scene.pages
    begins = [token_square(page, run.marks[0]) for run in page.runs if run.tag.column == 0]
    assert len(set(begins)) == len(begins) > 3
    counts = scene_counts(scene.pages)
    for number, square in enumerate(begins):
        assert begins[1 : number + 1] == counts[square][counts[square] != IGNORED].tolist()
    assert (np.delete(counts, begins, 0) == IGNORED).all()
    encoded = encode(scene)
    first = int(np.flatnonzero(encoded.ids == image_context_id())[0])
    told = encoded.counts[first + begins[-1]]
    assert [first + each for each in begins[1:]] == told[told != IGNORED].tolist()


def test_rows_that_begin_before_earlier_ones_are_not_counted():
    """A line of a board that begins in the second tile comes after the next one, which begins in the first."""
    page, style = Page(2 * TILE, TILE, draws=False), Type("dejavu/DejaVuSansMono", 20, (0, 0, 0))
    page.text(300, 40, "open", style, Tag("open", number=1))
    page.text(10, 90, "today", style, Tag("today", number=2))
    assert (scene_counts([page]) == IGNORED).all()


def test_a_shape_is_counted_with_those_before_it():
    for seed in range(8):
        (page,) = MAKERS["shapes"](Brush(random.Random(seed), draws=False)).pages
        for run in page.runs:
            counts = scene_counts([page])[token_square(page, run.marks[0])]
            assert (counts != IGNORED).sum() == run.tag.number


def test_an_answer_counts_what_it_tells_the_number_of():
    asked = 0
    for seed in range(8):
        scene = MAKERS["shapes"](Brush(random.Random(seed), draws=False))
        encoded = encode(scene)
        first = int(np.flatnonzero(encoded.ids == image_context_id())[0])
        for turn, begin in zip(scene.turns, _answers(encoded.targets), strict=True):
            if turn.question.startswith("How many"):
                told = encoded.tallies[begin]
                kinds = [run.pieces[1] for run in scene.pages[0].runs]
                places = [first + token_square(scene.pages[0], run.marks[0]) for run in scene.pages[0].runs]
                alike = [at for at, kind in zip(places, kinds, strict=True) if kind in turn.question]
                assert told[told != IGNORED].tolist() == sorted(alike or places)
                assert len(alike or places) == int(turn.answer)
                asked += 1
    assert asked > 8


def test_what_stands_to_the_right_is_looked_for_by_what_stands_to_its_left():
    """Its visual token is told the colour of the shape before it, and where that is; of one alone, that it is alone."""
    found = {"beside": 0, "nothing": 0}
    for seed in range(60):
        scene = MAKERS["shapes"](Brush(random.Random(seed), draws=False))
        (page,) = scene.pages
        encoded = encode(scene)
        first = int(np.flatnonzero(encoded.ids == image_context_id())[0])
        squares = {run.pieces[0]: token_square(page, run.marks[0]) for run in page.runs}
        for turn, begin in zip(scene.turns, _answers(encoded.targets), strict=True):
            if "to the right" not in turn.question:
                continue
            colour = turn.question.split()[-2]
            if turn.answer == questions.NOTHING:
                assert encoded.looks[begin] == 0
                found["nothing"] += 1
            elif encoded.looks[begin] != IGNORED:
                square = squares[turn.answer.split()[1]]
                assert encoded.looks[begin] == first + square
                assert (
                    _spelled(encoded.wanted[begin])
                    == colour[-2:]
                    == _spelled(page_names(page)[0, square, HEADS])
                )
                assert encoded.links[first + square, 2] == first + squares[colour] < first + square
                assert _spelled([encoded.ids[encoded.links[begin, 2]]]).strip() == colour
                found["beside"] += 1
    assert min(found.values()) >= 8


def _answers(targets):
    """Where each answer begins."""
    told = np.flatnonzero(targets != IGNORED)
    return [int(at) for at in told if at - 1 not in told]


def test_a_counting_head_is_told_to_look_alike_at_all_that_is_counted():
    """The loss is nothing where the shares are equal and on nothing else, and grows where one of them is left out."""
    counts = torch.full((1, 5, MOST), IGNORED)
    counts[0, 4, :2] = torch.tensor([1, 3])
    query = torch.ones(1, 5, 1)
    keys = ([0.0, 0, -99, 0, -99], [0.0, -99, -99, 0, -99])
    losses = [float(counted_loss(query, torch.tensor(key).view(1, 5, 1), counts)) for key in keys]
    assert losses[0] == pytest.approx(0, abs=1e-5)
    assert losses[1] > 10


def _spelled(names):
    return runtime_tokenizer().decode([int(each) for each in names if each != IGNORED], keep_special=False)
