"""What a question is about: where in its wording the row's key, and the column's head, are named."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from demo.recipe.questions import PLURALS
from demo.recipe.render.charset import COLOURS, SHAPES
from demo.recipe.render.page import Tag
from demo.recipe.tokenizer import runtime_tokenizer

NOT_NAMED = -1
THINGS = {*SHAPES, *PLURALS.values(), "shapes"}
# Rows and pictures that are asked for by another name than what they begin with.
OTHERS = {"total", "largest", "smallest", "first", "last", "shop"}
Offsets = tuple[int, int, int]


def asked(question: str, tags: Iterable[Tag]) -> Offsets:
    """Offsets of the first and the second character of the key, and of the head; of a shape its colour and its name.

    What stands to the right of a shape has its colour as the head.
    """
    words = {each.group(): each.start() for each in re.finditer(r"[A-Za-z]+|\d+", question)}
    tags = list(tags)
    head = _named(words, (tag.head for tag in tags))
    if (first := _named(words, (tag.key for tag in tags))) != NOT_NAMED:
        return first, first + 1 if question[first + 1 : first + 2].isalnum() else NOT_NAMED, head
    colour, thing = _named(words, COLOURS), _named(words, THINGS)
    if NOT_NAMED not in (colour, thing) or colour != thing:
        return colour, thing, colour if "right" in words else NOT_NAMED
    return _named(words, (each for each in words if each in OTHERS or each.isdigit())), NOT_NAMED, head


def _named(words: dict[str, int], candidates: Iterable[str | None]) -> int:
    """Where the longest of the candidates that are words of the question stands."""
    found = [each for each in candidates if each in words]
    return words[max(found, key=len)] if found else NOT_NAMED


def token_at(tokens: Sequence[int], offset: int) -> int:
    """Which of a text's tokens holds the character at an offset."""
    end = 0
    for at, token in enumerate(tokens):
        end += len(runtime_tokenizer().decode([token], keep_special=True))
        if offset < end:
            return at
    raise ValueError(f"the text ends at {end}, before {offset}")
