"""Options by name: every range, every wrong type, and the way over the wire."""

import json
from dataclasses import fields

import numpy as np
import pytest

from vitrail.client import wire
from vitrail.core import GenerateOptions, PromptOptions
from vitrail.errors import OptionError
from vitrail.options import (
    GENERATE_CHECKS,
    MAX_STOP_CHARACTERS,
    MAX_STOPS,
    PROMPT_CHECKS,
    options_from_json,
    options_to_json,
    read_options,
)


def test_no_options_are_the_defaults() -> None:
    assert read_options() == (PromptOptions(), GenerateOptions())


def test_the_defaults_pass_their_own_checks() -> None:
    defaults = {
        field.name: field.default for kind in (PromptOptions, GenerateOptions) for field in fields(kind)
    }
    assert read_options(**defaults) == (PromptOptions(), GenerateOptions())


def test_every_field_of_the_two_records_is_an_option() -> None:
    assert set(PROMPT_CHECKS) == {field.name for field in fields(PromptOptions)}
    assert set(GENERATE_CHECKS) == {field.name for field in fields(GenerateOptions)}


def test_options_go_to_the_record_that_they_belong_to() -> None:
    prompt, generate = read_options(max_tiles=6, system="", temperature=1, stop="\n", seed=np.int64(3))
    assert prompt == PromptOptions(max_tiles=6, system="")
    assert generate == GenerateOptions(temperature=1.0, stop=("\n",), seed=3)
    assert type(generate.temperature) is float
    assert type(generate.seed) is int


@pytest.mark.parametrize(
    ("name", "meant"),
    [("max_token", "max_tokens"), ("temprature", "temperature"), ("stops", "stop"), ("topk", "top_k")],
)
def test_an_unknown_option_suggests_the_nearest_known_one(name: str, meant: str) -> None:
    with pytest.raises(OptionError, match=f"unknown option '{name}'; did you mean '{meant}'") as caught:
        read_options(**{name: 1})
    assert "known are" in str(caught.value)


def test_an_option_like_no_other_gets_the_list_only() -> None:
    with pytest.raises(OptionError, match="unknown option 'xyzzy'; known are deadline_s, "):
        read_options(xyzzy=None)


ACCEPTED = [
    ("max_tiles", [None, 1, 40]),
    ("thumbnail", [None, True, False]),
    ("system", [None, "", "Speak."]),
    ("rotate", [True]),
    ("max_tokens", [None, 1, 100_000]),
    ("temperature", [0, 0.7, 2, np.float32(0.5)]),
    ("top_p", [1e-9, 1]),
    ("top_k", [0, 50]),
    ("min_p", [0, 1]),
    ("repetition_penalty", [0.01, 10]),
    ("presence_penalty", [-2, 2]),
    ("frequency_penalty", [-2, 2]),
    ("seed", [None, 0, 2**63 - 1]),
    ("ignore_eos", [True]),
    ("n", [1, 64]),
    ("logprobs", [None, 0, 20]),
    ("deadline_s", [None, 0.001, 604_800]),
    ("keep_special_tokens", [True]),
    ("priority", [0, 9]),
    ("user", ["", "Ada", "x" * 128]),
]
REFUSED = [
    ("max_tiles", [0, 41, -1, 1.0, True, "12"]),
    ("thumbnail", [1, "yes"]),
    ("system", [5, b"x", "\udc80"]),
    ("rotate", [None, 0]),
    ("max_tokens", [0, -5, 2**31, 3.5, True]),
    ("temperature", [-0.1, 2.1, float("nan"), float("inf"), 10**400, "hot", True, None]),
    ("top_p", [0, 1.01, -1]),
    ("top_k", [-1, 1.5]),
    ("min_p", [-0.1, 1.1]),
    ("repetition_penalty", [0, 1e-45, 0.0099, 11, float("nan")]),
    ("presence_penalty", [-2.1, 2.1]),
    ("frequency_penalty", [-2.1, 2.1]),
    ("seed", [-1, 2**63, 0.5, False]),
    ("stop", ["", [""], ["a", 5], 5, b"x", {"a": 1}, ["x"] * 17, "\udc80", ["a", "b\ud800"], "x" * 257]),
    ("ignore_eos", [1, "true", None]),
    ("n", [0, 65, True]),
    ("logprobs", [-1, 21, True]),
    ("deadline_s", [0, -1, 604_801, 1e10, 1e15, float("inf"), float("nan"), True]),
    ("keep_special_tokens", ["no"]),
    ("priority", [-1, 10, 1.0, True, None]),
    ("user", [None, 5, "\udc80", "x" * 129]),
]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in ACCEPTED for value in values])
def test_values_in_range_are_kept(name: str, value: object) -> None:
    prompt, generate = read_options(**{name: value})
    assert getattr(prompt if name in PROMPT_CHECKS else generate, name) == value


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSED for value in values])
def test_values_out_of_range_and_wrong_types_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=f"option '{name}' (is|has) .*") as caught:
        read_options(**{name: value})
    assert len(str(caught.value)) < 250


def test_the_refusal_names_value_and_limit() -> None:
    with pytest.raises(
        OptionError, match=r"option 'temperature' is 3\.5; it must be a finite number from 0 to 2"
    ):
        read_options(temperature=3.5)
    with pytest.raises(OptionError, match="option 'stop' has 17 strings, the limit is 16; give fewer"):
        read_options(stop=list("abcdefghijklmnopq"))
    with pytest.raises(OptionError, match="has a string of 257 characters, the limit is 256; shorten it"):
        read_options(stop=["a", "x" * 257])
    with pytest.raises(OptionError, match=r"'deadline_s' is 604801; .* above 0 to 604800"):
        read_options(deadline_s=604_801)


def test_an_integer_that_python_does_not_spell_is_refused_like_any_other() -> None:
    for name in ("temperature", "max_tokens"):
        with pytest.raises(OptionError, match=f"option '{name}' is a vast int"):
            read_options(**{name: 10**5000})


def test_stop_is_one_string_or_several_or_none() -> None:
    assert [read_options(stop=value)[1].stop for value in ("ab", ["a", "b"], ("a",), [], None)] == [
        ("ab",),
        ("a", "b"),
        ("a",),
        (),
        (),
    ]


def test_the_longest_options_fit_the_wire() -> None:
    longest = ["\0" * (MAX_STOP_CHARACTERS - 2) + f"{number:02}" for number in range(MAX_STOPS)]
    _, options = read_options(stop=longest)
    assert options_from_json(wire.options_from_json(wire.options_to_json(options))) == options


@pytest.mark.parametrize(
    "options",
    [
        GenerateOptions(),
        GenerateOptions(max_tokens=5, temperature=0.5, stop=("a", "\n"), seed=0, logprobs=0, ignore_eos=True),
        GenerateOptions(
            n=3, deadline_s=1.5, keep_special_tokens=True, presence_penalty=-1.0, top_p=0.1, top_k=3
        ),
        GenerateOptions(priority=0, user="Ada"),
    ],
)
def test_options_survive_the_wire(options: GenerateOptions) -> None:
    assert options_from_json(json.loads(json.dumps(options_to_json(options)))) == options


def test_the_wire_carries_only_what_is_set() -> None:
    assert options_to_json(GenerateOptions()) == {}
    assert options_to_json(GenerateOptions(seed=0)) == {"seed": 0}


@pytest.mark.parametrize("options", [{"max_tiles": 3}, {"temperature": "1"}, {"n": 0}, {"stop": [1]}])
def test_options_from_the_wire_are_checked_and_prompt_options_unknown(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        options_from_json(options)
