"""A request on its way through the decoder: its sink and times, and one sequence for each of its answers."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from vitrail.core import Delta, Report, Timings
from vitrail.errors import ServerError
from vitrail.kv import NOTHING
from vitrail.sample import Sampler
from vitrail.stream import TextStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from vitrail.core import FinishReason, Float, TokenLogprob
    from vitrail.errors import VitrailError
    from vitrail.kv import Keys, Seat
    from vitrail.manifest import TokenizerContract
    from vitrail.request import Request
    from vitrail.sample import Draw
    from vitrail.splice import PromptEmbeds
    from vitrail.tokenizer import Tokenizer

    Sink: TypeAlias = Callable[[Delta | VitrailError], None]
    Clock: TypeAlias = Callable[[], float]

log = logging.getLogger(__name__)


class Job:
    """One submitted request and its sink, which gets exactly one final event: the last delta, or an error.

    `limit`: the most tokens of an answer; remaining_s: to its deadline; clock: monotonic seconds. Deltas come from the decoder's thread; the
    final error of a closing decoder may come from another.
    """

    def __init__(self, request: Request, sink: Sink, *, limit: int, remaining_s: float, clock: Clock) -> None:
        self.request = replace(request, image_embeds=None)  # theirs is kept by who still needs it
        self.limit = limit
        self.sequences: dict[int, Sequence] = {}
        self.open = set(range(request.options.n))  # answers without their last delta
        self.completion_tokens = 0
        self.reused_tokens = 0
        self.aborted = False
        self.ended = False
        self.failed = False
        self.refused: VitrailError | None = None  # why it must end, if it must give way to others
        self._admitted_s: float | None = None
        self._first_token_s: float | None = None
        self._sink = sink
        self._clock = clock
        self._lock = threading.Lock()
        self._submitted_s = clock()
        self._expires_s = self._submitted_s + remaining_s

    def poll(self) -> None:
        """End the request where it is cancelled, late or gives way."""
        if self.refused is not None:
            self.fail(self.refused)
            return
        try:
            reason = self._verdict()
        except Exception:
            log.exception("request %s cannot tell whether it is cancelled", self.request.id)
            self.fail(ServerError("the request's connection failed; send it again"))
        else:
            if reason is not None:
                self._finish(reason)

    def admit(self, sequence: Sequence) -> None:
        """One of the answers got its slot."""
        self.sequences[sequence.index] = sequence
        if self._admitted_s is None:
            self._admitted_s = self._clock()

    def count_token(self) -> None:
        self.completion_tokens += 1
        if self._first_token_s is None:
            self._first_token_s = self._clock()

    def deliver(self, delta: Delta) -> None:
        """Pass a delta on; the last answer's last one carries the report. A sink that raises ends the request."""
        if delta.finish_reason is not None:
            self.open.discard(delta.index)
        self._send(delta if self.open else replace(delta, report=self._report()), final=not self.open)

    def fail(self, error: VitrailError) -> None:
        """End the request with an error, unless it has ended."""
        self.failed = True
        self._send(error, final=True)

    def _verdict(self) -> FinishReason | None:
        if self.aborted or (self.request.cancelled is not None and self.request.cancelled()):
            return "cancelled"
        return "deadline" if self._clock() >= self._expires_s else None

    def _finish(self, reason: FinishReason) -> None:
        for index in sorted(self.open):
            sequence = self.sequences.get(index)
            self.deliver(sequence.finish(reason) if sequence else Delta(index, finish_reason=reason))

    def _send(self, event: Delta | VitrailError, *, final: bool) -> None:
        with self._lock:
            if self.ended:
                return
            self.ended = final
        try:
            self._sink(event)
        except Exception:
            log.exception("the sink of request %s raised; the request is dropped", self.request.id)
            self.ended = True

    def _report(self) -> Report:
        now_s = self._clock()
        admitted_s = now_s if self._admitted_s is None else self._admitted_s
        first_s = now_s if self._first_token_s is None else self._first_token_s
        answered = self._first_token_s is not None
        timings = Timings(
            preprocess_ms=self.request.preprocess_ms,
            vision_ms=self.request.vision_ms,
            queue_ms=1000 * (admitted_s - self._submitted_s),
            prefill_ms=1000 * (first_s - admitted_s),
            decode_ms=1000 * (now_s - first_s),
            ttft_ms=self.request.spent_ms + 1000 * (first_s - self._submitted_s) if answered else 0.0,
            total_ms=self.request.spent_ms + 1000 * (now_s - self._submitted_s),
        )
        return Report(
            prompt_tokens=self.request.token_ids.size,
            completion_tokens=self.completion_tokens,
            reused_tokens=self.reused_tokens,
            reused_tiles=self.request.reused_tiles,
            images=self.request.images,
            timings=timings,
        )


class Sequence:
    """One answer in the making, in its slot of the KV cache. `prompt` is dropped once it is cached.

    `keys` name its prompt's tokens in the cache. `looked`: whether other slots were searched for its beginning.
    `due`: its place among the prompts that are to be read (see schedule.due).

    reads_as_written: whether what its tokens leave in the cache is of use to a later prompt (see DecoderSession).

    A stop token counts in the report's completion_tokens, but neither its id nor its text is part of the answer.
    """

    def __init__(
        self,
        job: Job,
        index: int,
        *,
        seat: Seat,
        prompt: PromptEmbeds,
        tokenizer: Tokenizer,
        contract: TokenizerContract,
        reads_as_written: bool = True,
    ) -> None:
        options = job.request.options
        self.job = job
        self.index = index
        self.slot, self.cached_tokens = seat.slot, seat.cached_tokens
        self.prompt: PromptEmbeds | None = prompt
        self.prompt_tokens = job.request.token_ids.size
        self.keys = prompt.keys
        self.looked = False
        self.due = 0
        self.tokens: list[int] = []
        self._reads_as_written = reads_as_written
        self._stop_ids = frozenset(() if options.ignore_eos else contract.stop_ids)
        self._text = TextStream(tokenizer, stop=options.stop, keep_special=options.keep_special_tokens)
        self._sampler = Sampler(
            options,
            seed=None if options.seed is None else options.seed + index,
            prompt_ids=prompt.text_ids(),
        )

    @property
    def priority(self) -> int:
        return self.job.request.options.priority

    @property
    def done(self) -> bool:
        """Nothing more is asked of this sequence: its slot can go."""
        return self.job.ended or self.index not in self.job.open

    @property
    def held(self) -> Keys:
        """What its slot holds, as keys; nothing after an error, which may have left anything there."""
        if self.job.failed or not len(self.keys):
            return NOTHING
        if not self._reads_as_written:
            return self.keys[: self.cached_tokens]
        return np.append(self.keys, np.array(self.tokens, np.int64))[: self.cached_tokens]

    def advance(self, tokens: int) -> None:
        """Count tokens that are now cached."""
        self.cached_tokens += tokens
        if self.cached_tokens >= self.prompt_tokens:
            self.prompt = None

    def plan(self) -> Draw | None:
        """How a session may draw the next token; None where it is to give the logits."""
        return self._sampler.plan()

    def accept(self, found: int | Float) -> Delta:
        """The next token, drawn as planned, or to be sampled from logits [vocab]: what it adds to the answer."""
        token_id, logprob = self._drawn(found)
        self.tokens.append(token_id)
        self.job.count_token()
        if token_id in self._stop_ids:
            return self.finish("stop")
        text = self._text.push(token_id)
        delta = Delta(self.index, text, (token_id,), () if logprob is None else (logprob,))
        last = self._text.stopped or len(self.tokens) == self.job.limit
        return self._close(delta, "length") if last else delta

    def _drawn(self, found: int | Float) -> tuple[int, TokenLogprob | None]:
        if isinstance(found, int):
            self._sampler.take(found)
            return found, None
        return self._sampler.sample(found)

    def finish(self, reason: FinishReason) -> Delta:
        """The last delta where the answer ends here, keeping what there is of it."""
        return self._close(Delta(self.index), reason)

    def _close(self, delta: Delta, reason: FinishReason) -> Delta:
        text = delta.text + self._text.finish()
        return replace(delta, text=text, finish_reason="stop" if self._text.stopped else reason)
