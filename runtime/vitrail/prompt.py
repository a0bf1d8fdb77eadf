"""Writing the prompt of a conversation as segments, byte for byte as the reference writes it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, groupby
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from vitrail.core import Control, ImageReport, Prompt, PromptOptions, Segment, Text, Visual
from vitrail.manifest import PromptContract
from vitrail.messages import Messages, Picture, Role, read_messages
from vitrail.pictures import Cut, Cutting, cut_picture
from vitrail.templates import GROUNDING_MARKS, TEMPLATES

if TYPE_CHECKING:
    from vitrail.core import Uint8
    from vitrail.images import ImageSource

PLACEHOLDER = "<image>"
# Pictures of one prompt that are opened and cut at once: Pillow lets go of the interpreter's lock for both. Each may
# hold a decoded picture and its stretched copy.
PICTURES_AT_ONCE = 4

Segments: TypeAlias = "tuple[Segment, ...]"
CutPicture: TypeAlias = "Callable[[ImageSource, Cutting], Cut]"

_MARK = re.compile("(" + "|".join(map(re.escape, GROUNDING_MARKS)) + ")")


def render(
    messages: Messages,
    *,
    contract: PromptContract,
    tile_size: int,
    tokens_per_tile: int,
    options: PromptOptions,
    cut: CutPicture = cut_picture,
) -> Prompt:
    """Open, cut and place every picture and write the prompt, which ends with the answer's opening. `cut` may know
    pictures from before.

    A system message wins over options.system, that over the checkpoint's, that over the template's; "" leaves the
    system block empty, as in the reference. Raises InvalidInput, ImageError, OptionError.
    """
    conversation = read_messages(messages)
    how = Cutting(
        max_tiles=contract.max_tiles if options.max_tiles is None else options.max_tiles,
        tile_size=tile_size,
        thumbnail=contract.thumbnail if options.thumbnail is None else options.thumbnail,
        rotate=options.rotate,
    )
    shown = [
        (picture.source, _cutting(picture, how)) for turn in conversation.turns for picture in turn.images
    ]
    cuts = _in_parallel(cut, shown)
    coming = iter(cuts)
    turns = [
        (turn.role, turn_segments(turn.text, [len(next(coming).tiles) for _ in turn.images]))
        for turn in conversation.turns
    ]
    system = options.system if conversation.system is None else conversation.system
    segments = template_segments(turns, contract=contract, system=system)
    return Prompt(
        segments=segments,
        tiles=_joined([each.tiles for each in cuts], tile_size),
        images=tuple(_report(each, tokens_per_tile) for each in cuts),
        text=prompt_text(segments, tokens_per_tile),
    )


def _report(cut: Cut, tokens_per_tile: int) -> ImageReport:
    tiles = len(cut.tiles)
    return ImageReport(*cut.size, cut.grid, tiles, tiles * tokens_per_tile)


def _cutting(picture: Picture, how: Cutting) -> Cutting:
    return replace(how, max_tiles=1) if picture.detail == "low" else how


def _in_parallel(cut: CutPicture, shown: Sequence[tuple[ImageSource, Cutting]]) -> list[Cut]:
    """Each source cut, in order. Raises what the first of those that fail raises.

    An object that is given twice is cut by one thread, once for each way: PIL images are not made for two at a time.
    """
    distinct = {id(source): source for source, _ in shown}
    ways = {key: {how for source, how in shown if id(source) == key} for key in distinct}

    def cut_source(key: int) -> dict[Cutting, Cut]:
        return {how: cut(distinct[key], how) for how in ways[key]}

    if len(distinct) < 2:
        found = {key: cut_source(key) for key in distinct}
    else:
        with ThreadPoolExecutor(min(len(distinct), PICTURES_AT_ONCE), thread_name_prefix="pictures") as pool:
            found = dict(zip(distinct, pool.map(cut_source, distinct), strict=True))
    return [found[id(source)][how] for source, how in shown]


def question_segments(question: str, tiles: Sequence[int], *, contract: PromptContract) -> Segments:
    """The prompt of one plain question about pictures that are already cut into `tiles` tiles each."""
    return template_segments([("user", turn_segments(question, tiles))], contract=contract)


def turn_segments(text: str, tiles: Sequence[int]) -> Segments:
    """One turn's text with its pictures of `tiles` tiles each in their places.

    Placeholders in the text are these places where there is one for each picture. Otherwise they are plain text and
    the pictures come first, as in the reference: one as `<image>`, several as `Image-1: <image>`, each on its line.
    """
    pieces = text.split(PLACEHOLDER)
    if not tiles:
        pieces = [text]
    elif len(pieces) != len(tiles) + 1:
        pieces = [*_leads(len(tiles)), "\n" + text]
    pictures = [(Visual(count),) for count in tiles]
    between = zip(map(_text_segments, pieces), [*pictures, ()], strict=True)
    return tuple(chain.from_iterable(chain(*pair) for pair in between))


def _leads(pictures: int) -> list[str]:
    """What stands before each of several pictures, the line break after the one before it included."""
    if pictures == 1:
        return [""]
    return ["Image-1: ", *(f"\nImage-{number}: " for number in range(2, pictures + 1))]


def _text_segments(text: str) -> Iterator[Segment]:
    """Text as it is, but for the grounding marks, which are the tokens that the model was trained on."""
    return (
        Control(piece) if piece in GROUNDING_MARKS else Text(piece) for piece in _MARK.split(text) if piece
    )


def template_segments(
    turns: Iterable[tuple[Role, Sequence[Segment]]], *, contract: PromptContract, system: str | None = None
) -> Segments:
    """The system message, the turns, and the opening of the answer. system None: the checkpoint's or template's own.

    A turn that says nothing has an opening but no separator, as in the reference.
    """
    template = TEMPLATES[contract.template]
    default = template.system if contract.system is None else contract.system
    parts = [
        *template.system_opening,
        *_text_segments(default if system is None else system),
        *template.separator,
    ]
    for role, said in turns:
        opening = template.user_opening if role == "user" else template.assistant_opening
        parts += [*opening, *said, *(template.separator if said else ())]
    return tuple(merged([*parts, *template.assistant_opening]))


def merged(segments: Iterable[Segment]) -> Iterator[Segment]:
    """The same segments with neighbouring texts joined: a tokenizer must see them as one."""
    for is_text, group in groupby(segments, key=lambda segment: isinstance(segment, Text)):
        if is_text:
            yield Text("".join(segment.text for segment in group if isinstance(segment, Text)))
        else:
            yield from group


def prompt_text(segments: Iterable[Segment], tokens_per_tile: int) -> str:
    """The prompt as one readable string, pictures written out. It cannot be read back: a text may spell a token."""
    return "".join(_spelled(segment, tokens_per_tile) for segment in segments)


def _spelled(segment: Segment, tokens_per_tile: int) -> str:
    match segment:
        case Text(text) | Control(text):
            return text
        case Visual(tiles):
            return "<img>" + "<IMG_CONTEXT>" * (tiles * tokens_per_tile) + "</img>"


def _joined(tiles: Sequence[Uint8], tile_size: int) -> Uint8:
    if len(tiles) == 1:
        return tiles[0]
    return np.concatenate([np.empty((0, 3, tile_size, tile_size), np.uint8), *tiles])
