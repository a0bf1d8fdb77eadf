"""What a server's metrics port says."""

import re
import urllib.request

from tests.repository.raw import ask, text

from vitrail.metrics import ANSWERS, AT_VISION, ERRORS, LIVE
from vitrail.triton.processes import wait_until

LINE = re.compile(r"^(?P<name>\w+)(?:\{(?P<labels>.*?)\})? (?P<value>\S+)$", re.MULTILINE)


class Scrape:
    """The metrics port at one moment."""

    def __init__(self, server):
        url = f"http://127.0.0.1:{server.options.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=60) as response:
            self.text = response.read().decode()
        self.rows = [
            (row["name"], row["labels"] or "", float(row["value"])) for row in LINE.finditer(self.text)
        ]

    @property
    def names(self):
        return {name for name, _, _ in self.rows}

    def value(self, name, label=""):
        """A sample's value; of all its labels together unless one is named."""
        return sum(value for found, labels, value in self.rows if found == name and label in labels)

    def __call__(self, series, label=""):
        """A series' value, a histogram's count."""
        return self.value(series.name + ("_count" if series.kind == "histogram" else ""), label)


def waiting(server, model):
    """Requests in the queue of a model."""
    return Scrape(server).value("nv_inference_pending_request_count", f'model="{model}"')


def cut_off(scrape):
    """How many answers were cancelled or late."""
    return sum(scrape(ANSWERS, f'="{reason}"') for reason in ("cancelled", "deadline"))


def idle(server):
    """The metrics port when every request has ended and nothing is left to be published of it."""
    found = []

    def is_idle():
        found.append(settled(server))
        return found[-1](LIVE) + found[-1](AT_VISION) == 0

    assert wait_until(is_idle, within_s=60)
    return found[-1]


def settled(server):
    """The metrics port when nothing is left to be published of the requests that have ended: once a new one has come."""
    before = Scrape(server)
    assert ask(server.grpc_url, "decoder", text_input="hi", options=text("nonsense")).error
    assert wait_until(lambda: Scrape(server)(ERRORS) > before(ERRORS), within_s=60)
    return Scrape(server)
