"""A client's end of a request, and what the vision models would have answered."""

import threading
import time

from tests.repository.bad_inputs import EMBEDS

from vitrail.core import Delta, Report
from vitrail.look import Seen

LAST = Delta(finish_reason="stop", report=Report(1, 1))


class Sender:
    """Notes what is sent; `gone` or `broken` as a client would be."""

    def __init__(self, *, gone=False, broken=False):
        self.gone, self.broken, self.events, self.polls = gone, broken, [], 0
        self.ended = threading.Event()

    def is_cancelled(self):
        self.polls += 1
        return self.gone

    def deliver(self, event, final):
        self.events.append(event)
        if final:
            self.ended.set()
        if self.broken:
            raise RuntimeError("connection lost")


def seen(tiles):
    return Seen(EMBEDS[: len(tiles)], reused_tiles=0)


def accept(answering, outbox, tensors, *, timeout_s=None, request_id=""):
    sender = Sender()
    answering.accept(lambda: tensors, outbox.open(sender), request_id=request_id, timeout_s=timeout_s)
    return sender


def wait_for(condition):
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)
