"""Keeps a server serving: watches its processes, reloads a dead vision model, restarts the rest.

Triton never restarts a stub that died, calls its model ready all the same, and leaves the decoder's streams hanging.
So a vision model is unloaded and loaded again (its requests in flight have already failed), while for the decoder
the whole server goes: every stream breaks at once, and until it is back its ports are closed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from vitrail.client.wire import PROJECTOR, VISION_ENCODER
from vitrail.errors import ServerError, VitrailError
from vitrail.triton.processes import Stub
from vitrail.triton.server import Progress, Server

RELOADABLE = (VISION_ENCODER, PROJECTOR)

log = logging.getLogger(__name__)


@dataclass
class Budget:
    """At most `limit` recoveries in `window_s`; between them, pauses that double from the second on."""

    limit: int = 5
    window_s: float = 60.0
    first_pause_s: float = 0.5
    clock: Callable[[], float] = time.monotonic
    _spent: deque[float] = field(default_factory=deque)

    def spend(self, reason: str) -> float:
        """Seconds to pause before this recovery. Raises ServerError when the budget is spent."""
        now = self.clock()
        while self._spent and now - self._spent[0] > self.window_s:
            self._spent.popleft()
        if len(self._spent) >= self.limit:
            raise ServerError(
                f"gave up after {self.limit} recoveries in {self.window_s:g} s; the last trouble: {reason}"
            )
        self._spent.append(now)
        return 0.0 if len(self._spent) == 1 else self.first_pause_s * 2.0 ** (len(self._spent) - 2)


@dataclass
class Silence:
    """How long processes have had the same pulse, in the watcher's own time: a machine that slept passed none of it."""

    _heard: dict[Stub, tuple[int, float]] = field(default_factory=dict)

    def seconds(self, stub: Stub, pulse: int | None, *, passed_s: float) -> float:
        """Of a process whose pulse is this now, passed_s after the last look; 0 for one without any."""
        if pulse is None:
            return 0.0
        last, silent_s = self._heard.get(stub, (pulse, -passed_s))
        silent_s = silent_s + passed_s if pulse == last else 0.0
        self._heard[stub] = (pulse, silent_s)
        return silent_s

    def forget(self, stub: Stub) -> None:
        self._heard.pop(stub, None)


class Supervisor:
    """Runs a server until it is told to stop. `run` does all its work in the calling thread, starts included."""

    def __init__(
        self,
        server: Server,
        *,
        budget: Budget | None = None,
        watch_interval_s: float = 0.2,
        on_progress: Progress | None = None,
        on_ready: Callable[[Server], None] | None = None,
        on_event: Callable[[str], None] = log.warning,
    ) -> None:
        """`on_ready` is called after every start, `on_event` with a line about every recovery."""
        self.server = server
        self._stop = threading.Event()
        self._budget = budget or Budget()
        self._watch_interval_s = watch_interval_s
        self._on_progress, self._on_ready, self._on_event = on_progress, on_ready, on_event
        self._stubs: dict[str, Stub] = {}
        self._reloads: dict[str, Future[None]] = {}
        self._restarts = 0
        self._silence = Silence()

    def stop(self) -> None:
        """Ask `run` to stop the server and return; from any thread or a signal handler."""
        self._stop.set()

    def run(self) -> None:
        """Start, watch and recover until `stop`, then stop the server.

        Raises what makes serving impossible; a ServerError tells where the log is kept.
        """
        pool = ThreadPoolExecutor(len(RELOADABLE), thread_name_prefix="reload")
        try:
            self.server.start()
            self._await_ready()
            while not self._stop.wait(self._watch_interval_s):
                self._check(pool)
        except ServerError as error:
            kept = self.server.keep_log()
            if kept is None or type(error) is not ServerError:
                raise
            raise ServerError(f"{error}; the server's log is kept in {kept}") from error
        finally:
            self.server.stop()
            pool.shutdown()

    def _await_ready(self) -> None:
        if not self.server.wait_ready(on_progress=self._on_progress, cancelled=self._stop.is_set):
            return
        self._stubs = {
            model: stub for model, stub in self.server.stubs().items() if model in self.server.watched
        }
        if missing := [model for model in self.server.watched if model not in self._stubs]:
            raise ServerError(f"the process of '{missing[0]}' died as soon as it had started")
        if self._on_ready is not None:
            self._on_ready(self.server)

    def _check(self, pool: ThreadPoolExecutor) -> None:
        self._collect_reloads()
        if not self.server.is_running:
            self._restart("tritonserver ended by itself")
            return
        self._end_the_stuck()
        dead = [
            stub
            for stub in self._stubs.values()
            if stub.model not in self._reloads and not self.server.lives(stub)
        ]
        for stub in dead:
            if stub.model not in RELOADABLE:
                self._restart(f"the process of '{stub.model}' died")
                return
            self._reload(stub, pool)

    def _end_the_stuck(self) -> None:
        """They are found dead at the next check."""
        limit_s = self.server.options.watchdog_s
        for stub in self._stubs.values() if limit_s else ():
            silent_s = self._silence.seconds(stub, self.server.pulse(stub), passed_s=self._watch_interval_s)
            if silent_s > limit_s:
                self._on_event(f"the process of '{stub.model}' made no progress for {limit_s:g} s; ending it")
                self.server.end(stub)
                self._silence.forget(stub)

    def _reload(self, dead: Stub, pool: ThreadPoolExecutor) -> None:
        """In the background: loading takes seconds, in which another process may die, or the whole server."""
        reason = f"the process of '{dead.model}' died"
        pause_s = self._budget.spend(reason)
        self._on_event(f"{reason}; loading it again")
        restarts = self._restarts

        def work() -> None:
            if not self._stop.wait(pause_s):
                self.server.reload(dead.model, dead=dead, wanted=lambda: self._restarts == restarts)

        self._reloads[dead.model] = pool.submit(work)

    def _collect_reloads(self) -> None:
        for model in [model for model, future in self._reloads.items() if future.done()]:
            future = self._reloads.pop(model)
            trouble = future.exception()
            if isinstance(trouble, VitrailError):
                self._restart(str(trouble))
            elif trouble is not None:
                raise trouble
            else:
                # The others' entries stay: one of them may have died meanwhile, to be seen at the next check.
                self._stubs[model] = self.server.stubs().get(model, self._stubs[model])
                self._on_event(f"'{model}' serves again")

    def _restart(self, reason: str) -> None:
        """Until it serves or the budget is spent. The server is killed before the pause: its clients hang on it."""
        self._reloads.clear()
        self._restarts += 1
        while not self._stop.is_set():
            self.server.kill()
            pause_s = self._budget.spend(reason)
            self._on_event(f"{reason}; starting the server again")
            if self._stop.wait(pause_s):
                return
            try:
                self.server.start()
                self._await_ready()
            except VitrailError as error:
                reason = str(error)
            else:
                return
