"""Requests that ask nothing answerable: name -> (tensors, what the error says). For an export of internvl2-tiny."""

import json

import numpy as np
from tests.repository.raw import ints, text

TILE, TOKENS, WIDTH = 448, 256, 96
TILES = np.zeros((2, 3, TILE, TILE), np.uint8)
EMBEDS = np.zeros((2, TOKENS, WIDTH), np.float32)


def prompt(**fields):
    return text(json.dumps({"segments": [{"text": "hi"}], **fields}))


def pictured(tiles):
    return prompt(segments=[{"visual": tiles}, {"text": "hi"}])


QUESTION = {"text_input": text("hi")}
BAD_INPUTS = {
    "no question": ({"max_tokens": ints(4)}, "[invalid_input] the question is in"),
    "two questions": ({**QUESTION, "prompt": prompt()}, "both are given"),
    "question not UTF-8": ({"text_input": text(b"\xff\xfe")}, "not UTF-8"),
    "prompt not JSON": ({"prompt": text("{")}, "'prompt' is malformed"),
    "prompt nested without end": ({"prompt": text("[" * 200_000)}, "'prompt' is malformed"),
    "prompt of no segments": ({"prompt": text('{"segments": []}')}, "'prompt' is malformed"),
    "prompt too large": ({"prompt": text(b" " * (5 << 20))}, "the limit is"),
    "unknown field in the prompt": ({"prompt": prompt(colour="red")}, "colour"),
    "segment of unknown kind": ({"prompt": prompt(segments=[{"sound": "la"}])}, "segments[0]"),
    "unknown control token": ({"prompt": prompt(segments=[{"control": "<|run|>"}])}, "<|run|>"),
    "picture of no tiles": ({"prompt": pictured(0)}, "segments[0]"),
    "picture of endless tiles": ({"prompt": pictured(2**31)}, "places for 2147483648 tiles, but 0"),
    "endless time": (
        {"prompt": text('{"segments": [{"text": "hi"}], "preprocess_ms": 1e999}')},
        "preprocess_ms",
    ),
    "more places than tiles": ({"prompt": pictured(3), "tiles": TILES}, "places for 3 tiles, but 2"),
    "fewer places than embeds": (
        {"prompt": pictured(1), "image_embeds": EMBEDS},
        "places for 1 tiles, but 2",
    ),
    "tiles of another size": (
        {**QUESTION, "tiles": TILES[:, :, :224]},
        "[2, 3, 224, 448]; this model takes uint8",
    ),
    "tiles and embeds": ({**QUESTION, "tiles": TILES, "image_embeds": EMBEDS}, "give one of them"),
    "embeds of another width": (
        {**QUESTION, "image_embeds": EMBEDS[..., :64]},
        "[2, 256, 64]; this model takes",
    ),
    "embeds that are no numbers": ({**QUESTION, "image_embeds": EMBEDS * np.nan}, "NaN or infinity"),
    "tile counts that differ": ({**QUESTION, "tiles": TILES, "num_tiles": ints(1, 2)}, "[1, 2], for 2 tiles"),
    "negative tile count": ({**QUESTION, "tiles": TILES, "num_tiles": ints(-1, 3)}, "at least 1"),
    "tile counts beside a prompt": ({"prompt": prompt(), "num_tiles": ints(1)}, "leave it out"),
    "options not JSON": ({**QUESTION, "options": text("temperature")}, "'options' is no JSON object"),
    "options a list": ({**QUESTION, "options": text("[]")}, "'options' is no JSON object"),
    "unknown option": ({**QUESTION, "options": text('{"temprature": 1}')}, "did you mean 'temperature'"),
    "prompt option": ({**QUESTION, "options": text('{"max_tiles": 1}')}, "unknown option 'max_tiles'"),
    "infinite option": ({**QUESTION, "options": text('{"temperature": 1e999}')}, "'temperature'"),
    "huge option": ({**QUESTION, "options": text('{"max_tokens": 1' + "0" * 400 + "}")}, "'max_tokens'"),
    "option of another type": ({**QUESTION, "options": text('{"stop": [1]}')}, "'stop'"),
    "option given twice": ({**QUESTION, "options": text('{"top_k": 1}'), "top_k": ints(1)}, "give it once"),
    "negative max_tokens": ({**QUESTION, "max_tokens": ints(-1)}, "'max_tokens' is -1"),
    "temperature that is no number": (
        {**QUESTION, "temperature": np.array([np.nan], np.float32)},
        "'temperature'",
    ),
    "more answers than slots": ({**QUESTION, "options": text('{"n": 60}')}, "slots"),
    "answer beyond the context": ({**QUESTION, "max_tokens": ints(10**6)}, "[prompt_too_long]"),
    "question beyond the context": ({"text_input": text("word " * 20_000)}, "[prompt_too_long]"),
    "question far beyond the context": (
        {"text_input": text("word " * 800_000)},
        "[prompt_too_long] the prompt's text has",
    ),
    "abort with a question": ({**QUESTION, "abort": text("x")}, "send it alone"),
    "announcement with a question": ({**QUESTION, "announce": text("x")}, "send it alone"),
    "abort not UTF-8": ({"abort": text(b"\xff")}, "not UTF-8"),
}
