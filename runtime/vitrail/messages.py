"""OpenAI-style messages, read and checked: what each turn says and which pictures it shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias

from vitrail.errors import ImageError, InvalidInput
from vitrail.images import ImageSource

Role: TypeAlias = Literal["system", "user", "assistant"]
Detail: TypeAlias = Literal["auto", "low", "high"]
Messages: TypeAlias = "str | Sequence[Mapping[str, object]]"

ROLES: tuple[Role, ...] = ("system", "user", "assistant")
PART_TYPES = ("text", "image", "image_url")
DETAILS: tuple[Detail, ...] = ("auto", "low", "high")


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture, unopened. detail "low": as one tile; else as the options say."""

    source: ImageSource
    detail: Detail = "auto"


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation: its text parts, joined by newlines, and its pictures in order, unopened."""

    role: Role
    text: str
    images: tuple[Picture, ...] = ()


@dataclass(frozen=True, slots=True)
class Conversation:
    """What the messages say: the turns of user and assistant. system is None where no message has that role."""

    system: str | None
    turns: tuple[Turn, ...]


def read_messages(messages: Messages) -> Conversation:
    """Messages as a conversation: at most one system message, first; then user and assistant by turns, user last.

    A bare string is one user message. Content is a string or a list of parts: {"type": "text", "text": ...},
    {"type": "image", "image": path, bytes, PIL image or data: URL}, {"type": "image_url", "image_url": {"url": data: URL}},
    the latter with a "detail": see Picture.
    Raises InvalidInput naming the message at fault.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, Sequence) or isinstance(messages, (bytes, bytearray)):
        raise InvalidInput(
            f"messages are of type {type(messages).__name__}; "
            'give a string or a list of {"role": ..., "content": ...}'
        )
    read = [_message(message, where=f"messages[{index}]") for index, message in enumerate(messages)]
    system = read[0].text if read and read[0].role == "system" else None
    turns = read if system is None else read[1:]
    _check_order([turn.role for turn in turns], first=len(read) - len(turns))
    return Conversation(system, tuple(turns))


def _check_order(roles: Sequence[str], *, first: int) -> None:
    """User and assistant by turns, user first and last. `first` is the index of the first of these messages."""
    if not roles:
        raise InvalidInput("messages hold no user message; add one with the question")
    if first and roles[0] == "system":
        raise InvalidInput("messages[1] is a second system message; join it with the first")
    if roles[0] != "user":
        raise InvalidInput(
            f"messages[{first}] has role '{roles[0]}'; the first after the system message must be 'user'"
        )
    for index, (earlier, later) in enumerate(pairwise(roles), start=first + 1):
        if later == "system":
            raise InvalidInput(
                f"messages[{index}] has role 'system'; only the first message may: move it there"
            )
        if later == earlier:
            raise InvalidInput(
                f"messages[{index}] has role '{later}' as the one before it; user and assistant take turns: join the two"
            )
    if roles[-1] != "user":
        raise InvalidInput(
            f"messages[{first + len(roles) - 1}], the last, has role '{roles[-1]}'; end with a user message"
        )


def _message(message: object, *, where: str) -> Turn:
    fields = _fields(message, known=("role", "content"), where=where)
    role = next((role for role in ROLES if role == fields["role"]), None)
    if role is None:
        raise InvalidInput(f"{where} has role {fields['role']!r}; known are {', '.join(ROLES)}")
    text, images = _content(fields["content"], where=where)
    if images and role != "user":
        raise InvalidInput(f"{where} has a picture but role '{role}'; only a user message may show pictures")
    if role == "user" and not text and not images:
        raise InvalidInput(f"{where} is an empty user message; give it a text or a picture")
    return Turn(role, text, images)


def _content(content: object, *, where: str) -> tuple[str, tuple[Picture, ...]]:
    if isinstance(content, str):
        return _valid_text(content, where=where), ()
    if not isinstance(content, Sequence) or isinstance(content, (bytes, bytearray)):
        raise InvalidInput(
            f"{where} has content of type {type(content).__name__}; give a string or a list of parts"
        )
    parts = [_part(part, where=f"{where}.content[{index}]") for index, part in enumerate(content)]
    texts = [part for part in parts if isinstance(part, str)]
    return "\n".join(texts), tuple(part for part in parts if isinstance(part, Picture))


def _part(part: object, *, where: str) -> str | Picture:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in PART_TYPES:
        shown = repr(kind) if isinstance(part, Mapping) else type(part).__name__
        raise InvalidInput(f"{where} has type {shown}; known part types are {', '.join(PART_TYPES)}")
    value = _fields(part, known=("type", kind), where=where)[kind]
    if kind == "text":
        return _valid_text(value, where=where)
    if kind == "image":
        return Picture(value)  # type: ignore[arg-type]  # open_image refuses other types by name
    return _image_url(value, where=where)


def _image_url(value: object, *, where: str) -> Picture:
    """The picture of an OpenAI part, which a remote caller writes: a data: URL, never a path of this machine."""
    url, detail = value, None
    if isinstance(value, Mapping):
        url = _fields(value, known=("url",), optional=("detail",), where=where)["url"]
        detail = value.get("detail")
    return Picture(_data_url(url, where=where), _detail(detail, where=where))


def _detail(detail: object, *, where: str) -> Detail:
    known = "auto" if detail is None else next((known for known in DETAILS if known == detail), None)
    if known is None:
        raise InvalidInput(
            f"{where} has detail {detail!r}; give 'low' for a single tile, or 'auto' or 'high' for what max_tiles allows"
        )
    return known


def _data_url(url: object, *, where: str) -> str:
    if not isinstance(url, str) or url[:5].lower() != "data:":
        shown = repr(url) if len(repr(url)) <= 80 else repr(url)[:77] + "…"
        raise ImageError(
            f"{where}: image_url is {shown}; vitrail fetches nothing: give a data: URL, "
            'or a path as {"type": "image", "image": PATH}'
        )
    return url


def _fields(
    record: object, *, known: Iterable[str], where: str, optional: Iterable[str] = ()
) -> Mapping[str, object]:
    """A mapping that has all the known keys; any other that is not optional must be None: its meaning would be lost."""
    if not isinstance(record, Mapping):
        raise InvalidInput(
            f"{where} is of type {type(record).__name__}; give a mapping with {', '.join(known)}"
        )
    for key in known:
        if key not in record:
            raise InvalidInput(f"{where} lacks '{key}'; give {', '.join(known)}")
    for key, value in record.items():
        if key not in (*known, *optional) and value is not None:
            known_keys = ", ".join((*known, *optional))
            raise InvalidInput(f"{where} has the unknown key '{key}'; known are {known_keys}")
    return record


def _valid_text(text: object, *, where: str) -> str:
    if not isinstance(text, str):
        raise InvalidInput(f"{where} has a text of type {type(text).__name__}; give a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"{where} has a text that is no valid Unicode ({error}); give text that UTF-8 can hold"
        ) from error
    return text
