"""Sends the decoder's answers to Triton from a thread of its own, and asks there whether the clients are gone.

Both cross to the server's process (0.2 to 1 ms each), which would be added to every step of every stream. When steps
are faster than SEND_INTERVAL_S, one picture of a screen, the deltas that a request has waiting are sent as one: nobody
sees more, and the processor time goes to the next steps. A first delta and a last one never wait.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Protocol, TypeAlias

from vitrail.core import Delta
from vitrail.errors import ServerError, VitrailError

log = logging.getLogger(__name__)

FAILED = "the server failed on this request; its log tells why"
POLL_INTERVAL_S = 0.1
SEND_INTERVAL_S = 0.016
_CLOSE_TIMEOUT_S = 5.0


class Sender(Protocol):
    """What the python backend calls a response sender."""

    def is_cancelled(self) -> bool: ...


class Done(NamedTuple):
    """The end of a request that has no answer, such as an abort."""


Event: TypeAlias = "Delta | VitrailError | Done"
# Sends one event; the last of its request where `final`.
Deliver: TypeAlias = Callable[[Any, Event, bool], None]
# Is told every event when it is made; must not raise.
Watcher: TypeAlias = Callable[["Delta | VitrailError"], None]


def is_final(event: Event) -> bool:
    return not isinstance(event, Delta) or event.report is not None


def joined(events: Iterable[Event]) -> list[Event]:
    """The same events with neighbouring deltas of one answer joined."""
    result: list[Event] = []
    for event in events:
        last = result[-1] if result else None
        if (
            isinstance(event, Delta)
            and isinstance(last, Delta)
            and last.index == event.index
            and not is_final(last)
        ):
            result[-1] = replace(
                event,
                text=last.text + event.text,
                token_ids=last.token_ids + event.token_ids,
                logprobs=last.logprobs + event.logprobs,
            )
        else:
            result.append(event)
    return result


class Reply:
    """One request's way back: a sink for its events, and whether its client has gone.

    The sender is let go with the last event, whoever still holds the reply: Triton counts a model as in use, and
    does not unload it, while one of its senders exists.
    """

    def __init__(self, sender: Sender, ready: SimpleQueue[Reply | None], watch: Watcher) -> None:
        self._sender: Sender | None = sender
        self._watch = watch
        self._ready = ready  # replies with something to send, each once, and once more with their last event
        self._pending: list[Event] = []
        self._lock = threading.Lock()  # guards _pending
        self._gone = False
        self.rests_until_s = 0.0  # after something was sent

    def send(self, event: Event) -> None:
        if not isinstance(event, Done):
            self._watch(event)
        with self._lock:
            self._pending.append(event)
            if len(self._pending) == 1 or is_final(event):
                self._ready.put(self)

    def cancelled(self) -> bool:
        """As of the last poll."""
        return self._gone

    # for the outbox's thread

    @property
    def is_urgent(self) -> bool:
        """Whether its last event is to be sent."""
        with self._lock:
            return any(map(is_final, self._pending))

    def deliver(self, deliver: Deliver) -> bool:
        """Send what is pending, nothing after a last event; whether that was sent."""
        with self._lock:
            events, self._pending = self._pending, []
        for event in joined(events):
            self._deliver(event, deliver)
        return self._sender is None

    def _deliver(self, event: Event, deliver: Deliver) -> None:
        """A failure means that the client is gone."""
        sender, final = self._sender, is_final(event)
        if sender is None:
            return
        if final:
            self._sender = None
        try:
            deliver(sender, event, final)
        except Exception:
            log.exception("an answer could not be sent; its client is taken as gone")
            self._gone = True

    def poll(self) -> None:
        try:
            self._gone = self._gone or (self._sender is not None and self._sender.is_cancelled())
        except Exception:
            log.exception("a client could not be asked for; it is taken as gone")
            self._gone = True


@contextmanager
def failing(reply: Reply) -> Iterator[None]:
    """What is raised inside ends the reply; only a VitrailError's text reaches the client."""
    try:
        yield
    except VitrailError as error:
        reply.send(error)
    except Exception:
        log.exception("a request failed")
        reply.send(ServerError(FAILED))


class Outbox:
    """`open` a reply for every request; its last event closes it."""

    def __init__(self, deliver: Deliver, *, poll_interval_s: float = POLL_INTERVAL_S) -> None:
        self._deliver = deliver
        self._poll_interval_s = poll_interval_s
        self._ready: SimpleQueue[Reply | None] = SimpleQueue()
        self._open: set[Reply] = set()
        self._lock = threading.Lock()  # guards _open
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def open(self, sender: Sender, watch: Watcher = lambda _: None) -> Reply:
        reply = Reply(sender, self._ready, watch)
        with self._lock:
            self._open.add(reply)
        return reply

    def close(self) -> None:
        """Send what is queued and end."""
        self._ready.put(None)
        self._thread.join(_CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        resting: deque[Reply] = deque()  # that sent something too short a while ago
        next_poll_s = 0.0
        while True:
            now_s = time.monotonic()
            while resting and resting[0].rests_until_s <= now_s:
                self._send(resting.popleft())
            if now_s >= next_poll_s:
                self._poll()
                next_poll_s = now_s + self._poll_interval_s
            due_s = min(next_poll_s, resting[0].rests_until_s) if resting else next_poll_s
            try:
                reply = self._ready.get(timeout=max(0.0005, due_s - time.monotonic()))
            except Empty:
                continue
            if reply is None:
                break
            if reply.rests_until_s > time.monotonic() and not reply.is_urgent:
                resting.append(reply)
            else:
                self._send(reply)
            del reply
        for reply in resting:
            self._send(reply)

    def _send(self, reply: Reply) -> None:
        reply.rests_until_s = time.monotonic() + SEND_INTERVAL_S
        if reply.deliver(self._deliver):
            with self._lock:
                self._open.discard(reply)

    def _poll(self) -> None:
        with self._lock:
            replies = tuple(self._open)
        for reply in replies:
            reply.poll()
