"""A decoder on fakes and what its tests ask of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from vitrail.answer import collect
from vitrail.core import Delta, GenerateOptions
from vitrail.decoder import Decoder, Request, Settings
from vitrail.errors import VitrailError
from vitrail.manifest import TokenizerContract
from vitrail.session.fake import IMAGE_CONTEXT_ID, STOP_ID, ByteTokenizer, FakeDecoder

CONTRACT = TokenizerContract(
    kind="tokenizers",
    file="none",
    special={"<IMG_CONTEXT>": IMAGE_CONTEXT_ID, "<stop>": STOP_ID},
    added={},
    bos_id=None,
    stop_ids=(STOP_ID,),
)
CHUNK = 5


@dataclass
class Clock:
    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Sink:
    """Keeps a request's events and knows whether it has ended."""

    events: list[Delta | VitrailError] = field(default_factory=list)

    def __call__(self, event: Delta | VitrailError) -> None:
        self.events.append(event)

    @property
    def finals(self) -> int:
        return sum(isinstance(event, VitrailError) or event.report is not None for event in self.events)

    @property
    def completion(self):
        assert self.finals == 1
        return collect(self.events)

    @property
    def reason(self) -> str:
        return self.completion.finish_reason


class Fixed(FakeDecoder):
    """A session that answers every row with the same tokens, by their place in the answer."""

    def __init__(self, tokens, *, prompt_tokens, **sizes) -> None:
        super().__init__(**sizes)
        self.tokens, self.prompt_tokens = tokens, prompt_tokens

    def _logits(self, slot, position):
        place = position + 1 - self.prompt_tokens
        logits = np.full(300, -10.0, np.float32)
        logits[self.tokens[place % len(self.tokens)]] = 10.0
        return logits


def make(session=None, *, clock=None, **settings) -> Decoder:
    # Chunks of the same length on every machine: none is measured.
    settings = {"prefill_chunk": CHUNK, "tpot_slowdown": math.inf, **settings}
    clock = {} if clock is None else {"clock": clock}
    return Decoder(session or FakeDecoder(), ByteTokenizer(), CONTRACT, Settings(**settings), **clock)


def request(number: int = 0, *, tokens: int = 7, tiles: int = 0, **options) -> Request:
    chance = np.random.default_rng(number)
    ids = chance.integers(0, 256, tokens).astype(np.int32)
    ids[1 : 1 + 2 * tiles] = IMAGE_CONTEXT_ID
    embeds = chance.normal(size=(tiles, 2, 8)).astype(np.float32) if tiles else None
    options = GenerateOptions(**{"max_tokens": 8, "ignore_eos": True, **options})
    return Request(id=f"r{number}", token_ids=ids, image_embeds=embeds, options=options)


def drain(decoder: Decoder, *, limit: int = 3000) -> int:
    return next(count for count in range(limit) if not decoder.step())


def idle(decoder: Decoder) -> bool:
    now = decoder.statistics
    return (now.slots_used, now.live_requests, now.queued_answers) == (0, 0, 0)


def solo(asked: Request, **settings):
    """The completion of a request that is alone, its prompt cached at once."""
    decoder, sink = make(**{"prefill_chunk": 64, **settings}), Sink()
    decoder.submit(asked, sink)
    drain(decoder)
    return sink.completion


def answers(completion):
    return [(choice.token_ids, choice.text, choice.finish_reason) for choice in completion.choices]


MIXED = [request(n, tokens=5 + 3 * n, tiles=n % 3, max_tokens=4 + n) for n in range(8)]
