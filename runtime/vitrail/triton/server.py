"""One tritonserver, from its repository to its end: start, readiness, reload of a model, bounded stop."""

from __future__ import annotations

import logging
import secrets
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias

from vitrail.client.wire import DECODER, PROJECTOR, VISION_ENCODER
from vitrail.errors import ServerError
from vitrail.manifest import load_manifest
from vitrail.plan.check import check_load
from vitrail.triton import log, metering, pulse, tracing
from vitrail.triton.control import Control
from vitrail.triton.installation import (
    Installation,
    compose_backends,
    environment,
    find_installation,
    require_backends,
)
from vitrail.triton.options import ServerOptions, check_log, check_tls, command, settle_ports
from vitrail.triton.processes import (
    Stub,
    die_with_parent,
    find_stubs,
    free_shared_memory_bytes,
    is_alive,
    kill_all,
    remove_shared_memory,
    wait_until,
)
from vitrail.triton.repository import MODELS, ServingSettings, shared_memory_shortage, write_repository
from vitrail.triton.workspace import Workspace, sweep

if TYPE_CHECKING:
    from typing_extensions import Self

# Called with the models that are loaded, whenever there is one more, of all of MODELS.
Progress: TypeAlias = Callable[[tuple[str, ...]], None]
Compose: TypeAlias = Callable[..., object]

logger = logging.getLogger(__name__)

WATCHED = (VISION_ENCODER, PROJECTOR, DECODER)
"""Models of the python backend, each with a process of its own."""

_UNLOAD_TIMEOUT_S = 10.0
_LAST_UNLOAD_TIMEOUT_S = 3.0
_KILL_TIMEOUT_S = 10.0
_EXIT_MARGIN_S = 3.0


class Server:
    """A tritonserver that serves `artifacts`. Its files live in a temporary folder of its own.

        with Server(artifacts, options=ServerOptions(grpc_port=0)) as server:
            client = vitrail.Client(server.grpc_url)

    The thread that calls `start` must outlive it: the server is killed with that thread, so that a launcher
    that dies leaves no server behind. No supervision here: see `Supervisor`.
    """

    def __init__(
        self,
        artifacts: Path,
        *,
        options: ServerOptions | None = None,
        settings: ServingSettings | None = None,
        compose: Compose = write_repository,
    ) -> None:
        self.artifacts = artifacts.resolve()
        self.options = options or ServerOptions()
        self.settings = settings or ServingSettings()
        self._compose = compose
        self._admin_key = secrets.token_hex(16)
        self._workspace: Workspace | None = None
        self._command: list[str] = []
        self._environment: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._log_offset = 0
        self._failed: Mapping[str, str] = {}

    # state

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def grpc_url(self) -> str:
        return self.options.grpc_url

    @property
    def log_path(self) -> Path | None:
        return self.options.log or (self._workspace.log if self._workspace else None)

    @property
    def control(self) -> Control:
        return Control(self.options.connect_host, self.options.http_port, self._admin_key)

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def failed(self) -> Mapping[str, str]:
        """Of a server that keeps going: the models that could not be loaded, and why."""
        return self._failed

    def stubs(self) -> Mapping[str, Stub]:
        """The newest living stub of each model; a reload leaves the older one alive for a moment."""
        prefix = self._workspace.region_prefix if self._workspace else "\0"
        return {stub.model: stub for stub in find_stubs(prefix)}

    @property
    def watched(self) -> tuple[str, ...]:
        """Models that have a stub: Triton's own backends run in the server's process."""
        watched = WATCHED if self.settings.target == "cpu" else (DECODER,)
        return tuple(model for model in watched if model not in self._failed)

    def lives(self, stub: Stub) -> bool:
        return is_alive(stub.pid)

    def pulse(self, stub: Stub) -> int | None:
        """Changes as long as the process is idle or makes progress; None for one that does not tell."""
        return pulse.read_pulse(self._workspace.path, stub.model) if self._workspace else None

    def end(self, stub: Stub) -> None:
        """Kill a process that is stuck; it has then died."""
        kill_all([stub.pid], within_s=_KILL_TIMEOUT_S)

    # life

    def start(self) -> None:
        """Compose everything and start the process. Raises before it for artifacts, ports or binaries that are wrong."""
        if self._workspace is None:
            self._prepare()
        assert self.log_path is not None  # the workspace has one
        self._log_offset, self._failed = log.size(self.log_path), {}
        with self.log_path.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603  (our own command line)
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at the terminal is the launcher's
                preexec_fn=die_with_parent(),  # noqa: PLW1509  (calls one looked-up C function)
            )

    def _prepare(self) -> None:
        sweep()
        installation = find_installation(self.options.tritonserver)
        check_tls(self.options.tls)
        check_log(self.options.log)
        self._check_memory()
        self.options = settle_ports(self.options)
        workspace = self._workspace = Workspace()
        try:
            self._warn_of_shortage()
            self._write_repository(installation, workspace.repository)
            backends = compose_backends(installation, workspace.path)
        except BaseException:
            self.stop()
            raise
        vision = load_manifest(self.artifacts).vision
        self._environment = environment(
            installation, artifacts=self.artifacts, vision=vision
        ) | self._observed(workspace)
        self._command = command(
            self.options,
            binary=installation.binary,
            backends=backends,
            repository=workspace.repository,
            region_prefix=workspace.region_prefix,
            admin_key=self._admin_key,
        )

    def _write_repository(self, installation: Installation, out: Path) -> None:
        """With keep_going, a damaged engine or a missing backend is the matter of the models that need it."""
        keep_going = self.options.keep_going
        self._compose(self.artifacts, out, settings=self.settings, keep_going=keep_going)
        if any(each.startswith("--backend-directory") for each in self.options.extra_args):
            return
        try:
            require_backends(installation, out)
        except ServerError as error:
            if not keep_going:
                raise
            logger.warning(str(error))

    def _observed(self, workspace: Workspace) -> dict[str, str]:
        """Where the models' processes leave their pulse, whether they count, and where they send their spans."""
        otel = self.options.otel
        traces = {} if otel is None else {tracing.URL_VARIABLE: tracing.collector_url(otel)}
        metrics = {} if self.options.metrics else {metering.VARIABLE: "off"}
        return {pulse.VARIABLE: str(workspace.path), **metrics, **traces}

    def _check_memory(self) -> None:
        check_load(
            load_manifest(self.artifacts),
            self.settings.decoder,
            self.settings.provider,
            tiles_per_run=self.settings.tiles_per_run,
            feature_cache_bytes=self.settings.feature_cache_bytes,
            server=True,
            target=None if self.settings.target == "cpu" else self.settings.target,
        )

    def _warn_of_shortage(self) -> None:
        manifest = load_manifest(self.artifacts)
        shortage = shared_memory_shortage(manifest, free_bytes=free_shared_memory_bytes())
        if shortage is not None:
            logger.warning(shortage)

    def wait_ready(
        self, *, on_progress: Progress | None = None, cancelled: Callable[[], bool] = lambda: False
    ) -> bool:
        """Wait until every model serves; False when `cancelled` came first.

        Raises the failed model's own error, or ServerError when the process ended or options.start_timeout_s passed.
        With options.keep_going, `failed` then tells what does not serve; only without its decoder a server is none.
        """
        seen: tuple[str, ...] = ()

        def settled() -> bool:
            nonlocal seen
            loaded = log.loaded_models(self._log())
            if on_progress and loaded != seen:
                seen = loaded
                on_progress(loaded)
            return cancelled() or not self.is_running or self._is_settled()

        done = wait_until(settled, within_s=self.options.start_timeout_s, every_s=0.1)
        if cancelled():
            return False
        if not self.is_running:
            raise log.start_error(self._log())
        if not done:
            raise ServerError(
                f"the server was not ready within {self.options.start_timeout_s:g} s "
                f"(loaded: {', '.join(seen) or 'nothing'} of {', '.join(MODELS)}); allow it more time"
            )
        self._failed = self._models_missing()
        if DECODER in self._failed:
            raise log.start_error(self._log())
        return True

    def _is_settled(self) -> bool:
        return self.control.is_live() if self.options.keep_going else self.control.is_ready()

    def _models_missing(self) -> dict[str, str]:
        if not self.options.keep_going or self.control.is_ready():
            return {}
        return log.missing_models(self._log(), MODELS, is_ready=self.control.is_model_ready)

    def _log(self) -> str:
        return log.read_from(self.log_path, self._log_offset) if self.log_path else ""

    def reload(
        self, model: str, *, dead: Stub | None = None, wanted: Callable[[], bool] = lambda: True
    ) -> None:
        """Unload and load one model, not ready in between. `dead`: its stub that died, whose memory region goes.

        `wanted` is asked before each of the two: a server that was started again meanwhile has its models.
        Raises ServerError when it cannot.
        """
        if wanted():
            self.control.unload(model, timeout_s=_UNLOAD_TIMEOUT_S)
        if wanted():
            self.control.load(model, timeout_s=self.options.start_timeout_s)
        if dead is not None:
            remove_shared_memory(dead.region)

    def kill(self) -> None:
        """End the process and its stubs at once, and remove their shared memory. The server may be started again."""
        pids = [stub.pid for stub in find_stubs(self._workspace.region_prefix)] if self._workspace else []
        if self._process is not None:
            self._process.kill()
            self._process.wait(_KILL_TIMEOUT_S)
        kill_all(pids, within_s=_KILL_TIMEOUT_S)
        if self._workspace is not None:
            remove_shared_memory(self._workspace.region_prefix)

    def keep_log(self) -> Path | None:
        """Where the log stays when the server is stopped: options.log, or a copy; None where there is none."""
        if self._workspace is None or self.options.log is not None:
            return self.options.log
        return self._workspace.keep_log()

    def hurry(self) -> None:
        """End a `stop` that is under way; safe in a signal handler."""
        if self._process is not None:
            self._process.kill()

    def stop(self) -> None:
        """Let requests in flight finish for options.exit_timeout_s, then end everything and remove every trace."""
        if self.is_running and self._process is not None:
            self._process.terminate()
            self._await_exit()
        if self._workspace is not None:
            self.kill()
            self._workspace.remove()
        self._process = self._workspace = None

    def _await_exit(self) -> None:
        """Triton sometimes waits its whole timeout for a model that nobody uses: once all requests are answered,
        unloading gets _LAST_UNLOAD_TIMEOUT_S and no more.
        """
        wait_until(
            lambda: not self.is_running or log.is_idle(self._log()),
            within_s=self.options.exit_timeout_s + _EXIT_MARGIN_S,
        )
        wait_until(lambda: not self.is_running, within_s=_LAST_UNLOAD_TIMEOUT_S)

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
