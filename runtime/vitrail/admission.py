"""Who may come in: requests wait in a fair queue for the slots of the KV cache. Safe from every thread."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

from vitrail.errors import Busy, InvalidInput, ServerError
from vitrail.fair import Claim, FairQueue
from vitrail.kv import Seat, Slots

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vitrail.kv import Keys
    from vitrail.sequence import Clock, Job
    from vitrail.splice import PromptEmbeds

REMEMBERED = 1024
# How long after its cancel a request may still arrive: it may have waited for the vision models of an ensemble.
EARLY_ABORT_S = 5.0
EARLY_ABORT_PICTURED_S = 120.0


class Waiting(NamedTuple):
    """An answer that waits for a slot."""

    job: Job
    answer: int
    prompt: PromptEmbeds

    @property
    def claim(self) -> Claim:
        """The prompt is counted with the first answer, which the others copy it from."""
        job, options = self.job, self.job.request.options
        prompt_tokens = 0 if self.answer else job.request.token_ids.size
        return Claim(options.user, options.priority, prompt_tokens + job.limit)


class Admission:
    """The live requests, the answers that wait (at most queue_limit beyond the free slots) and the slots.

    In a full queue a request of the user who has most waiting, or of the least urgent, gives way (see FairQueue).
    A cancel can overtake its request on the way here: it is remembered for a while, for 1024 requests.
    """

    def __init__(self, *, slots: int, queue_limit: int, clock: Clock) -> None:
        self.queue_limit = queue_limit
        self._clock = clock
        self._changed = threading.Condition()
        self._jobs: dict[str, Job] = {}
        self._waiting: FairQueue[Waiting] = FairQueue()
        self._slots = Slots(slots)
        self._early_aborts: OrderedDict[str, float] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._closed: str | None = None  # why nobody comes in any more

    def enter(self, job: Job, prompt: PromptEmbeds) -> None:
        """Let a request wait. Raises Busy, InvalidInput for an id that is in use, ServerError once closed."""
        request = job.request
        with self._changed:
            self._require_open()
            if request.id in self._jobs:
                raise InvalidInput(f"request id '{request.id}' is being answered already; give each its own")
            entries = [Waiting(job, index, prompt) for index in range(request.options.n)]
            self._make_room(entries)
            job.aborted = self._take_abort(request.id, pictured=prompt.pictured)
            self._jobs[request.id] = job
            for entry in entries:
                self._waiting.push(entry, entry.claim)
            self._changed.notify_all()

    def abort(self, request_id: str) -> bool:
        """Cancel a request from the next step on; False where it is not here (it may still be on its way)."""
        with self._changed:
            job = self._jobs.get(request_id)
            if job is not None:
                job.aborted = True
                return True
            if request_id not in self._ended:
                self._early_aborts[request_id] = self._clock()
                _forget(self._early_aborts)
            return False

    def take_abort(self, request_id: str) -> bool:
        """Whether a request that is still on its way was cancelled; once told, that is forgotten."""
        with self._changed:
            return self._take_abort(request_id, pictured=False)

    def jobs(self) -> tuple[Job, ...]:
        with self._changed:
            return tuple(self._jobs.values())

    def admit(self) -> list[tuple[Waiting, Seat]]:
        """As many of the waiting as there are free slots, in the queue's order, each with its slot."""
        with self._changed:
            admitted = []
            while (head := self._waiting.head()) and (seat := self._slots.take(head.prompt.keys)):
                admitted.append((self._waiting.pop(), seat))
            return admitted

    def kept(self) -> dict[int, Keys]:
        """What every free slot holds."""
        with self._changed:
            return self._slots.kept

    def forget(self) -> None:
        """Of no free slot is it known what it holds."""
        with self._changed:
            self._slots.forget()

    def vacate(self, slots: Iterable[tuple[int, Keys]]) -> None:
        """Free these slots, each with what it holds, and forget the requests that have ended."""
        with self._changed:
            for slot, keys in slots:
                self._slots.release(slot, keys)
            self._waiting.keep(lambda entry: not entry.job.ended)
            self._ended.update((id_, None) for id_, job in self._jobs.items() if job.ended)
            _forget(self._ended)
            self._jobs = {id_: job for id_, job in self._jobs.items() if not job.ended}

    def wait(self) -> bool:
        """Block until a request is here; False once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._jobs)
            return self._closed is None

    def require_open(self) -> None:
        """Raises ServerError once closed."""
        with self._changed:
            self._require_open()

    def close(self, why: str) -> None:
        """Let nobody in from now on; `why` is what they are told."""
        with self._changed:
            self._closed = why
            self._changed.notify_all()

    def counts(self) -> tuple[int, int, int]:
        """Live requests, waiting answers, used slots."""
        with self._changed:
            return len(self._jobs), len(self._waiting), self._slots.used

    def _require_open(self) -> None:
        if self._closed is not None:
            raise ServerError(self._closed)

    def _take_abort(self, request_id: str, *, pictured: bool) -> bool:
        self._ended.pop(request_id, None)
        aborted_s = self._early_aborts.pop(request_id, None)
        limit_s = EARLY_ABORT_PICTURED_S if pictured else EARLY_ABORT_S
        return aborted_s is not None and self._clock() - aborted_s < limit_s

    def _make_room(self, entries: list[Waiting]) -> None:
        """See that so many more may wait. Raises Busy; who gives way to them ends with it at the next step."""
        excess = len(self._waiting) - self._slots.free + len(entries) - self.queue_limit
        if excess <= 0:
            return
        busy = self._busy(len(entries))
        crowd = self._waiting.crowd(entries[0].claim, len(entries))
        job = crowd and crowd.job
        if job is None or job.sequences or job.request.options.n < excess:
            raise busy
        job.refused = busy
        self._waiting.keep(lambda entry: entry.job is not job)

    def _busy(self, answers: int) -> Busy:
        waiting = max(0, len(self._waiting) - self._slots.free)
        return Busy(
            f"{waiting} answers wait for the {self._slots.count} slots and {answers} more would exceed "
            f"the queue's limit of {self.queue_limit} (queue_limit); try again later"
        )


def _forget(remembered: OrderedDict[str, Any]) -> None:
    while len(remembered) > REMEMBERED:
        remembered.popitem(last=False)
