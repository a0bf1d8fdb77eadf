"""The supervisor's decisions, with a server that only pretends."""

import threading
from collections import Counter

import pytest

from vitrail.errors import ServerError
from vitrail.triton.options import ServerOptions
from vitrail.triton.processes import Stub, wait_until
from vitrail.triton.server import WATCHED
from vitrail.triton.supervisor import Budget, Supervisor


class FakeServer:
    """Stubs are numbers that `die` takes away; every start and reload makes new ones."""

    def __init__(self):
        self.calls, self.is_running, self.broken = Counter(), False, set()
        self._next, self._stubs = 0, {}
        self.options = ServerOptions(watchdog_s=0)
        self.watched = WATCHED
        self.gate = threading.Event()  # reloads wait for it
        self.gate.set()

    def _new(self, model):
        self._next += 1
        self._stubs[model] = Stub(self._next, self._next, model, f"region-{self._next}")

    def die(self, model):
        self._stubs.pop(model)

    def lives(self, stub):
        return stub in self._stubs.values()

    def pulse(self, stub):
        return None

    def stubs(self):
        return dict(self._stubs)

    def start(self):
        self.calls["start"] += 1
        self.is_running = True
        for model in WATCHED:
            self._new(model)

    def wait_ready(self, *, on_progress, cancelled):
        if "start" in self.broken and self.calls["start"] > 1:
            raise ServerError("no room")
        return not cancelled()

    def reload(self, model, *, dead, wanted):
        self.calls[f"reload {model}"] += 1
        self.gate.wait(60)
        if not wanted():
            self.calls["unwanted"] += 1
            return
        if model in self.broken:
            raise ServerError("cannot load")
        self._new(model)

    def kill(self):
        self.calls["kill"] += 1
        self.is_running = False

    def keep_log(self):
        assert not self.calls["stop"], "the log has gone"
        return "/kept/server.log"

    def stop(self):
        self.calls["stop"] += 1
        self.is_running = False


@pytest.fixture
def supervised():
    """A running supervisor: (server, events, supervisor, the result of run)."""
    server, events, over = FakeServer(), [], []
    ready = threading.Event()
    supervisor = Supervisor(
        server,
        budget=Budget(first_pause_s=0.001),
        watch_interval_s=0.005,
        on_ready=lambda _: ready.set(),
        on_event=events.append,
    )

    def run():
        try:
            supervisor.run()
            over.append(None)
        except ServerError as error:
            over.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(60)
    yield server, events, supervisor, over
    supervisor.stop()
    thread.join(60)
    assert not thread.is_alive()
    assert server.calls["stop"] == 1


@pytest.mark.parametrize("model", ["vision_encoder", "projector"])
def test_a_dead_vision_model_is_reloaded_alone(supervised, model):
    server, events, _, _ = supervised
    server.die(model)
    assert wait_until(lambda: len(events) == 2, within_s=60)
    assert events == [f"the process of '{model}' died; loading it again", f"'{model}' serves again"]
    assert server.calls == {"start": 1, f"reload {model}": 1}


def test_both_vision_models_may_die_at_once(supervised):
    server, events, _, _ = supervised
    server.die("projector")
    server.die("vision_encoder")
    assert wait_until(lambda: len(events) == 4, within_s=60)
    assert set(server.stubs()) == set(WATCHED)
    assert server.calls["start"] == 1


def test_a_dead_decoder_takes_the_whole_server(supervised):
    server, events, _, _ = supervised
    server.die("decoder")
    assert wait_until(lambda: server.calls["start"] == 2 and server.is_running, within_s=60)
    assert server.calls["kill"] == 1
    assert events == ["the process of 'decoder' died; starting the server again"]


def test_a_server_that_ended_is_started_again(supervised):
    server, events, _, _ = supervised
    server.is_running = False
    assert wait_until(lambda: server.calls["start"] == 2 and server.is_running, within_s=60)
    assert events == ["tritonserver ended by itself; starting the server again"]


def test_a_model_that_cannot_be_reloaded_costs_a_restart(supervised):
    server, events, _, _ = supervised
    server.broken.add("projector")
    server.die("projector")
    assert wait_until(lambda: server.calls["start"] == 2 and server.is_running, within_s=60)
    assert events[-1] == "cannot load; starting the server again"


def test_a_reload_that_outlives_its_server_leaves_the_next_one_alone(supervised):
    server, events, _, _ = supervised
    server.gate.clear()
    server.die("projector")
    assert wait_until(lambda: server.calls["reload projector"] == 1, within_s=60)
    server.die("decoder")
    assert wait_until(lambda: server.calls["start"] == 2 and server.is_running, within_s=60)
    before = server.stubs()
    server.gate.set()
    assert wait_until(lambda: server.calls["unwanted"] == 1, within_s=60)
    assert server.stubs() == before
    assert events[-1] == "the process of 'decoder' died; starting the server again"


def test_a_server_that_does_not_come_back_is_given_up_with_the_reason(supervised):
    server, events, _, over = supervised
    server.broken.add("start")
    server.die("decoder")
    assert wait_until(lambda: over, within_s=60)
    assert "gave up after 5 recoveries in 60 s; the last trouble: no room" in str(over[0])
    assert str(over[0]).endswith("; the server's log is kept in /kept/server.log")
    assert len(events) == 5


def test_stopping_is_no_outage(supervised):
    _, events, supervisor, over = supervised
    supervisor.stop()
    assert wait_until(lambda: over, within_s=60)
    assert over == [None]
    assert not events


def test_the_budget_counts_only_recent_recoveries_and_pauses_longer_each_time():
    now = 0.0
    budget = Budget(limit=3, window_s=60.0, clock=lambda: now)
    assert [budget.spend("x") for _ in range(3)] == [0.0, 0.5, 1.0]
    with pytest.raises(ServerError, match="the last trouble: x"):
        budget.spend("x")
    now = 61.0
    assert budget.spend("x") == 0.0
