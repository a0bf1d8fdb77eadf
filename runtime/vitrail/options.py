"""Options by name, checked: unknown names, wrong types and values outside their range are refused, never dropped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, TypeAlias

from vitrail.core import GenerateOptions, PromptOptions
from vitrail.errors import OptionError
from vitrail.fair import LEAST_URGENT, MOST_URGENT
from vitrail.tiling import MAX_TILES

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_TOKENS = 2**31 - 1
MAX_SEED = 2**63 - 1
MAX_ANSWERS = 64
MAX_LOGPROBS = 20
MAX_USER_CHARACTERS = 128
MAX_DEADLINE_S = 604_800  # a week: far more overflows the clocks of gRPC and of threads
LOWEST_REPETITION_PENALTY = 0.01  # logits divided by much less are no float32

# Checks one option: (name, value) -> the value in its own type, or OptionError.
Check: TypeAlias = Callable[[str, object], Any]


def read_options(**options: object) -> tuple[PromptOptions, GenerateOptions]:
    """Keyword options as the two records they belong to; what is not given keeps its default.

    Raises OptionError for an unknown name (it tells the nearest known one), a wrong type or a value outside its
    range. A bool is no number; whole floats are no integers.
    """
    values = _checked(options, known=PROMPT_CHECKS | GENERATE_CHECKS)
    prompt = {name: value for name, value in values.items() if name in PROMPT_CHECKS}
    generate = {name: value for name, value in values.items() if name in GENERATE_CHECKS}
    return PromptOptions(**prompt), GenerateOptions(**generate)


def options_from_json(options: Mapping[str, object]) -> GenerateOptions:
    """GenerateOptions from a JSON object that came over the wire; the same checks. Prompt options are unknown here."""
    return GenerateOptions(**_checked(options, known=GENERATE_CHECKS))


def options_to_json(options: GenerateOptions) -> dict[str, object]:
    """What `options_from_json` reads back: the fields that differ from their defaults."""
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    return {name: value for name, value in values.items() if value != getattr(_DEFAULTS, name)}


def _checked(options: Mapping[str, object], *, known: Mapping[str, Check]) -> dict[str, Any]:
    for name in options:
        if name not in known:
            near = get_close_matches(str(name), known, n=1, cutoff=0.7)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise OptionError(f"unknown option '{name}'; {hint}known are {', '.join(sorted(known))}")
    return {name: known[name](name, value) for name, value in options.items()}


def _refuse(name: str, value: object, wanted: str) -> OptionError:
    try:
        shown = repr(value)
    except ValueError:  # Python spells no integer of more than 4300 digits
        shown = f"a vast {type(value).__name__}"
    shown = shown if len(shown) <= 80 else shown[:77] + "…"
    return OptionError(f"option '{name}' is {shown}; it must be {wanted}")


def _flag(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise _refuse(name, value, "true or false")


def _text(name: str, value: object) -> str:
    if isinstance(value, str) and is_unicode(value):
        return value
    raise _refuse(name, value, "a string of valid Unicode, without lone surrogates")


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold a text: a Python string may also hold lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _user(name: str, value: object) -> str:
    text = _text(name, value)
    if len(text) > MAX_USER_CHARACTERS:
        raise OptionError(
            f"option '{name}' has {len(text)} characters, the limit is {MAX_USER_CHARACTERS}; shorten it"
        )
    return text


def _integer(low: int, high: int) -> Check:
    def check(name: str, value: object) -> int:
        if isinstance(value, Integral) and not isinstance(value, bool) and low <= int(value) <= high:
            return int(value)
        raise _refuse(name, value, f"an integer from {low} to {high}")

    return check


def _number(low: float, high: float, *, above: bool = False) -> Check:
    """A finite number from low to high; `above`: low itself is outside."""

    def check(name: str, value: object) -> float:
        if isinstance(value, Real) and not isinstance(value, bool):
            number = _float(value)
            if (low < number if above else low <= number) and number <= high and math.isfinite(number):
                return number
        bounds = f"above {low:g}" if above else f"from {low:g}"
        raise _refuse(name, value, f"a finite number {bounds} to {high:.10g}")

    return check


def _float(value: Real) -> float:
    try:
        return float(value)
    except OverflowError:  # of an integer beyond what floats reach
        return math.inf


def _optional(check: Check) -> Check:
    return lambda name, value: None if value is None else check(name, value)


def _stops(name: str, value: object) -> tuple[str, ...]:
    """One stop string or up to MAX_STOPS of them; None is none."""
    stops = (value,) if isinstance(value, str) else () if value is None else value
    if not isinstance(stops, Sequence) or isinstance(stops, (bytes, bytearray, memoryview)):
        raise _refuse(name, value, f"a string or a sequence of at most {MAX_STOPS} strings")
    if len(stops) > MAX_STOPS:
        raise OptionError(f"option '{name}' has {len(stops)} strings, the limit is {MAX_STOPS}; give fewer")
    if not all(isinstance(stop, str) and stop and is_unicode(stop) for stop in stops):
        raise _refuse(name, value, "of strings that are not empty and valid Unicode, without lone surrogates")
    if (longest := max(map(len, stops), default=0)) > MAX_STOP_CHARACTERS:
        raise OptionError(
            f"option '{name}' has a string of {longest} characters, the limit is {MAX_STOP_CHARACTERS}; shorten it"
        )
    return tuple(stops)


PROMPT_CHECKS: dict[str, Check] = {
    "max_tiles": _optional(_integer(1, MAX_TILES)),
    "thumbnail": _optional(_flag),
    "system": _optional(_text),
    "rotate": _flag,
}
GENERATE_CHECKS: dict[str, Check] = {
    "max_tokens": _optional(_integer(1, MAX_TOKENS)),
    "temperature": _number(0, 2),
    "top_p": _number(0, 1, above=True),
    "top_k": _integer(0, MAX_TOKENS),
    "min_p": _number(0, 1),
    "repetition_penalty": _number(LOWEST_REPETITION_PENALTY, 10),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "seed": _optional(_integer(0, MAX_SEED)),
    "stop": _stops,
    "ignore_eos": _flag,
    "n": _integer(1, MAX_ANSWERS),
    "logprobs": _optional(_integer(0, MAX_LOGPROBS)),
    "deadline_s": _optional(_number(0, MAX_DEADLINE_S, above=True)),
    "keep_special_tokens": _flag,
    "priority": _integer(MOST_URGENT, LEAST_URGENT),
    "user": _user,
}
_DEFAULTS = GenerateOptions()
