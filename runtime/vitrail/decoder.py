"""The continuous-batching decoder: requests join and leave at every step.

submit -> waiting -> (slot) prefill, chunk by chunk -> decode, token by token -> last delta -> slot free
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from vitrail.admission import Admission
from vitrail.batch import to_step
from vitrail.errors import OptionError, ServerError, VitrailError
from vitrail.fair import LEVEL_TOKENS
from vitrail.kv import NOTHING, longest_reusable
from vitrail.request import Request, answer_limit, check_request, require_text_room
from vitrail.schedule import Decode, Prefill, delays, due, next_batch, next_prompt
from vitrail.sequence import Job, Sequence
from vitrail.settings import Settings
from vitrail.splice import PromptEmbeds

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vitrail.admission import Waiting
    from vitrail.core import Float, GenerateOptions, Segment
    from vitrail.kv import Keys, Seat
    from vitrail.manifest import TokenizerContract
    from vitrail.sequence import Clock, Sink
    from vitrail.session import DecoderSession
    from vitrail.tokenizer import Tokenizer

    Batch: TypeAlias = Prefill[Sequence] | Decode[Sequence]

__all__ = ["Decoder", "Request", "Settings", "Statistics"]

FAILED = "the model failed on this request; the log of the process that runs it tells why"
SHUTTING_DOWN = "the server is shutting down; send the request again later"

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Totals:
    """What a decoder has done since it was made."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prefill_steps: int = 0
    decode_steps: int = 0
    reused_tokens: int = 0

    def count(self, batch: Batch) -> None:
        if isinstance(batch, Prefill):
            self.prefill_steps += 1
            self.prompt_tokens += batch.new_tokens
        else:
            self.decode_steps += 1


@dataclass(frozen=True, slots=True)
class Statistics:
    """A decoder at one moment, and its totals. cached_tokens: in all slots; turns: of its thread, failed steps too."""

    slots: int
    slots_used: int
    live_requests: int
    queued_answers: int
    totals: Totals = field(default_factory=Totals)
    cached_tokens: int = 0
    turns: int = 0


class Decoder:
    """Answers many requests from one session.

    `submit` and `abort` may be called from any thread; sinks are called from the decoder's own thread, after
    `start`, or from the one that calls `step`.
    """

    def __init__(
        self,
        session: DecoderSession,
        tokenizer: Tokenizer,
        contract: TokenizerContract,
        settings: Settings | None = None,
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        self.settings = settings or Settings()
        self._session = session
        self._tokenizer = tokenizer
        self._contract = contract
        self._clock = clock
        self._width = session.embed(np.zeros(1, np.int32)).shape[-1]
        self._admission = Admission(slots=session.slots, queue_limit=self.settings.queue_limit, clock=clock)
        self._active: list[Sequence] = []
        self._after_prefill = False
        self._pace = self.settings.pace
        self._totals = Totals()
        self._turns = 0
        self._thread: threading.Thread | None = None

    @property
    def statistics(self) -> Statistics:
        live, queued, used = self._admission.counts()
        kept, rows = self._admission.kept(), self._active
        cached = sum(map(len, kept.values())) + sum(row.cached_tokens for row in rows)
        return Statistics(self._session.slots, used, live, queued, replace(self._totals), cached, self._turns)

    def answer_limit(self, prompt_tokens: int, options: GenerateOptions) -> int:
        """The most tokens an answer may have. Raises PromptTooLong, or OptionError where n exceeds the slots."""
        if options.n > self._session.slots:
            raise OptionError(
                f"n is {options.n}, but there are {self._session.slots} slots; ask for at most so many answers"
            )
        return answer_limit(prompt_tokens, options.max_tokens, capacity=self._session.capacity)

    def require_open(self) -> None:
        """Raise ServerError once closed."""
        self._admission.require_open()

    def require_text_room(self, segments: Iterable[Segment]) -> None:
        """Raise PromptTooLong for a prompt whose tokens need not be counted: its text is too long for any slot."""
        require_text_room(segments, context_tokens=self._session.capacity - 1)

    def submit(self, request: Request, sink: Sink) -> None:
        """Let a request wait for its slots; `sink` gets its deltas and exactly one final event.

        Raises InvalidInput, OptionError, PromptTooLong or Busy; then the sink is never called.
        """
        image_id = self._contract.image_context_id
        check_request(request, image_context_id=image_id, width=self._width)
        job = self._job(request, sink)
        prompt = PromptEmbeds(
            self._session,
            request.token_ids,
            request.image_embeds,
            image_context_id=image_id,
            reuse=self.settings.prefix_cache,
        )
        self._admission.enter(job, prompt)

    def dismiss(self, request: Request, sink: Sink) -> bool:
        """End a request that is not submitted yet where it is cancelled or late, as a step would; whether it was.

        What its asker spends on it beforehand is bounded by asking this now and then.
        """
        job = self._job(request, sink)
        job.aborted = self._admission.take_abort(request.id)
        job.poll()
        return job.ended

    def remaining_s(self, request: Request) -> float:
        """Seconds from now to the deadline of a request that is not submitted yet; negative where it has passed."""
        deadline_s = request.options.deadline_s
        if deadline_s is None:
            deadline_s = self.settings.default_deadline_s
        return deadline_s - request.spent_ms / 1000

    def abort(self, request_id: str) -> bool:
        """Cancel a request at the next step; False where it is not here. One still on its way is cancelled, too."""
        return self._admission.abort(request_id)

    def step(self) -> bool:
        """One forward pass: schedule, forward, sample, emit. False where there is nothing to do."""
        self._dismiss()
        self._admit()
        batch = self._schedule()
        if batch is None:
            return False
        for sequence, found in self._forward(batch):
            self._emit(sequence, found)
        self._vacate()
        return True

    def start(self) -> None:
        """Step in a thread of its own until `close`."""
        self._thread = threading.Thread(target=self._run, name="vitrail-decoder", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float = 10.0, *, why: str = SHUTTING_DOWN) -> None:
        """End the thread and, with an error that says why, every live request. Returns within timeout_s and a little."""
        self._admission.close(why)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
        for job in self._admission.jobs():
            job.fail(ServerError(why))
        if self._thread is None or not self._thread.is_alive():
            self._vacate()

    def _job(self, request: Request, sink: Sink) -> Job:
        limit = self.answer_limit(request.token_ids.size, request.options)
        return Job(request, sink, limit=limit, remaining_s=self.remaining_s(request), clock=self._clock)

    def _run(self) -> None:
        while self._admission.wait():
            self._try_step()

    def _try_step(self) -> None:
        self._turns += 1
        try:
            self.step()
        except Exception:
            log.exception("a decoder step failed; every request that it held ends")
            for job in self._admission.jobs():
                job.fail(ServerError(FAILED))
            self._vacate()

    def _dismiss(self) -> None:
        """End what is cancelled or late."""
        for job in self._admission.jobs():
            job.poll()
        self._vacate()

    def _admit(self) -> None:
        while admitted := self._admission.admit():
            for waiting, seat in admitted:
                self._seat(waiting, seat)

    def _seat(self, waiting: Waiting, seat: Seat) -> None:
        job, answer, prompt = waiting
        try:
            if seat.move is not None:
                self._session.copy(*seat.move)
            sequence = Sequence(
                job,
                answer,
                seat=seat,
                prompt=prompt,
                tokenizer=self._tokenizer,
                contract=self._contract,
                reads_as_written=self._session.reads_as_written,
            )
        except Exception:
            log.exception("request %s cannot begin", job.request.id)
            job.fail(ServerError(FAILED))
            self._admission.vacate([(seat.slot, NOTHING)])
            self._admission.forget()
        else:
            sequence.due = self._due(sequence)
            job.admit(sequence)
            self._active.append(sequence)

    def _due(self, sequence: Sequence) -> int:
        known = max(sequence.cached_tokens, self._best_source(sequence, self._admission.kept()).cached_tokens)
        missing = sequence.prompt_tokens - known
        return due(self._totals.prompt_tokens, missing, sequence.priority, level=LEVEL_TOKENS)

    def _schedule(self) -> Batch | None:
        kept = self._admission.kept()
        self._reuse(kept)
        batch = next_batch(
            self._active,
            {slot: len(keys) for slot, keys in kept.items()},
            pace=self._pace,
            after_prefill=self._after_prefill,
        )
        self._after_prefill = isinstance(batch, Prefill)
        return batch

    def _reuse(self, kept: dict[int, Keys]) -> None:
        """Before a prompt's first chunk, copy what another slot holds of its beginning."""
        row = next_prompt(self._active)
        if row is None or row.looked:
            return
        row.looked = True
        best = self._best_source(row, kept)
        if best.cached_tokens > row.cached_tokens:
            self._session.copy(best.slot, row.slot, best.cached_tokens)
            row.cached_tokens = best.cached_tokens
        row.job.reused_tokens += row.cached_tokens
        self._totals.reused_tokens += row.cached_tokens

    def _best_source(self, row: Sequence, kept: dict[int, Keys]) -> Seat:
        """The slot that holds most of a prompt's beginning, and how much of it."""
        held = [(other.slot, other.held) for other in self._active]
        return longest_reusable([*held, *kept.items(), (row.slot, NOTHING)], row.keys)

    def _forward(self, batch: Batch) -> Iterator[tuple[Sequence, int | Float]]:
        """The sequences that get a token: the token, or their logits [vocab].

        A batch that fails is run again row by row, so that only the requests that fail alone end.
        """
        began_s = self._clock()
        try:
            found = self._session.sample(
                to_step(batch, self._session), [row.plan() for row in batch.answered]
            )
        except Exception:
            log.exception("a forward pass over %d rows failed", len(batch.rows))
            yield from self._retry(batch)
            return
        for row in batch.rows:
            row.advance(batch.new_tokens)
        self._totals.count(batch)
        yield from zip(batch.answered, found, strict=True)
        self._measure(batch, self._clock() - began_s)  # what became of the tokens meanwhile included

    def _measure(self, batch: Batch, seconds: float) -> None:
        if isinstance(batch, Prefill):
            self._pace.read(batch.new_tokens, seconds, writing=delays(batch.row, self._active))
        else:
            self._pace.wrote(seconds)

    def _retry(self, batch: Batch) -> Iterator[tuple[Sequence, int | Float]]:
        if isinstance(batch, Decode) and len(batch.rows) > 1:
            for part in batch.split():
                yield from self._forward(part)
        else:
            batch.rows[0].job.fail(ServerError(FAILED))

    def _emit(self, sequence: Sequence, found: int | Float) -> None:
        try:
            delta = sequence.accept(found)
        except VitrailError as error:
            log.info("request %s failed: %s", sequence.job.request.id, error)
            sequence.job.fail(error)
        except Exception:
            log.exception("request %s failed", sequence.job.request.id)
            sequence.job.fail(ServerError(FAILED))
        else:
            self._totals.completion_tokens += 1
            sequence.job.deliver(delta)

    def _vacate(self) -> None:
        done = [sequence for sequence in self._active if sequence.done]
        self._active = [sequence for sequence in self._active if not sequence.done]
        self._admission.vacate((sequence.slot, sequence.held) for sequence in done)
