"""How a server listens and what it may do: frozen options and the tritonserver command line they become. Pure."""

from __future__ import annotations

import errno
import ipaddress
import socket
from dataclasses import dataclass, replace
from pathlib import Path

from vitrail.errors import OptionError, ServerError
from vitrail.spans import SERVICE
from vitrail.triton.repository import MODELS
from vitrail.triton.tracing import collector_url

# Loads and unloads models, writes log and trace files: for the supervisor only.
_RESTRICTED = ("model-repository", "logging", "trace")
# gRPC metadata that carries the admin key; over HTTP the header is the bare _ADMIN.
_ADMIN = "vitrail-admin"
# tritonserver's options that are vitrail's to give, and what of `vitrail serve` takes their place. Said a second time, they
# would win over vitrail's own, which then looks for the server, its log or its models in another place.
_OWN: dict[str, str | None] = {
    "grpc-port": "--grpc-port",
    "http-port": "--http-port",
    "metrics-port": "--metrics-port",
    **dict.fromkeys(("grpc-address", "http-address", "metrics-address"), "--host"),
    "grpc-use-ssl": "--tls-cert and --tls-key",
    "grpc-server-cert": "--tls-cert",
    "grpc-server-key": "--tls-key",
    "log-file": "--log",
    "exit-on-error": "--keep-going",
    "model-repository": "the directory of artifacts",
    "model-store": "the directory of artifacts",
    **dict.fromkeys(("model-control-mode", "load-model", "disable-auto-complete-config", "log-format"), None),
}


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files for gRPC. Triton has no TLS for HTTP and metrics, which then stay on the loopback address."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Where a server listens (port 0: any free one), which binary runs, how long it may take.

    shared_memory: whether clients may register system shared memory. Whoever may can name any region of the
    machine, so None allows it on a loopback address only. metrics: whether vitrail's own series are published
    beside Triton's. otel: URL of a collector (OTLP over HTTP) for traces of
    every `otel_rate`-th request. watchdog_s: without any progress for so long, a process counts as dead; 0 for
    never. keep_going: a model that cannot be loaded leaves the others serving, as long as the decoder does; else it ends
    the server. extra_args go to tritonserver as they are; none may be one that is set here.
    """

    host: str = "127.0.0.1"
    grpc_port: int = 8001
    http_port: int = 8000
    metrics_port: int = 8002
    tls: Tls | None = None
    tritonserver: Path | None = None
    shared_memory: bool | None = None
    exit_timeout_s: int = 10
    start_timeout_s: float = 600.0
    log: Path | None = None
    metrics: bool = True
    otel: str | None = None
    otel_rate: int = 1
    watchdog_s: float = 600.0
    keep_going: bool = False
    extra_args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.otel is not None:
            collector_url(self.otel)
        if self.otel_rate < 1:
            raise OptionError(
                f"otel_rate is {self.otel_rate}; it must be at least 1 (1: every request is traced)"
            )
        if not self.watchdog_s >= 0:
            raise OptionError(f"watchdog_s is {self.watchdog_s}; give 0 (off) or more seconds")
        for argument in self.extra_args:
            _refuse_own(argument)

    @property
    def is_local(self) -> bool:
        return _is_loopback(self.host)

    @property
    def plain_host(self) -> str:
        """The address of HTTP and metrics."""
        return self.host if self.tls is None else "127.0.0.1"

    @property
    def connect_host(self) -> str:
        """Where this machine reaches the HTTP port."""
        return "127.0.0.1" if self.plain_host == "localhost" else _reachable(self.plain_host)

    @property
    def grpc_url(self) -> str:
        return f"{_bracketed(_reachable(self.host))}:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        return f"{_bracketed(self.connect_host)}:{self.http_port}"

    @property
    def restricted(self) -> tuple[str, ...]:
        """Protocols that need the admin key."""
        allowed = self.is_local if self.shared_memory is None else self.shared_memory
        return _RESTRICTED if allowed else (*_RESTRICTED, "shared-memory")


def _refuse_own(argument: str) -> None:
    name = argument.partition("=")[0].removeprefix("--")
    if name in _OWN:
        cure = f"give {_OWN[name]} of `vitrail serve` instead" if _OWN[name] else "leave it out"
        raise OptionError(f"--triton-arg {argument}: vitrail sets tritonserver's --{name} itself; {cure}")


def _reachable(host: str) -> str:
    """An address of this machine where `host` stands for all of them."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104


def _bracketed(host: str) -> str:
    """As it stands before a port."""
    return f"[{host}]" if ":" in host else host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_tls(tls: Tls | None) -> None:
    """Raise OptionError for a file that is not what it should be: tritonserver would call its port taken."""
    for path, kind in () if tls is None else ((tls.certificate, "CERTIFICATE"), (tls.key, "PRIVATE KEY")):
        try:
            content = path.read_bytes()
        except OSError as error:
            raise OptionError(
                f"cannot read the TLS file '{path}' ({error.strerror}); give the path of a PEM file"
            ) from error
        if f"{kind}-----".encode() not in content:
            raise OptionError(f"the TLS file '{path}' holds no {kind} in PEM's form; give one that does")


def check_log(path: Path | None) -> None:
    """Raise OptionError for a log that cannot be written, before anything is made ready."""
    if path is None:
        return
    try:
        path.open("ab").close()
    except OSError as error:
        raise OptionError(
            f"cannot write the log '{path}' ({error.strerror}); give a file in a directory that exists and may be written to"
        ) from error


def settle_ports(options: ServerOptions) -> ServerOptions:
    """Replace ports 0 by free ones and see that the others are free. Raises ServerError naming the one in use."""
    names = ("grpc_port", "http_port", "metrics_port")
    hosts = (options.host, options.plain_host, options.plain_host)
    ports = [getattr(options, name) for name in names]
    _check_range(names, ports)
    sockets = [_bind(host, port, name=name) for host, port, name in zip(hosts, ports, names, strict=True)]
    chosen = {name: bound.getsockname()[1] for name, bound in zip(names, sockets, strict=True)}
    for bound in sockets:
        bound.close()
    return replace(options, **chosen)


def _check_range(names: tuple[str, ...], ports: list[int]) -> None:
    for name, port in zip(names, ports, strict=True):
        if not 0 <= port <= 65535:
            raise OptionError(f"{name} {port} is no port; give 1 to 65535, or 0 for any free one")
        if port and ports.count(port) > 1:
            raise OptionError(f"{name} {port} is given twice; gRPC, HTTP and metrics need a port each")


def _bind(host: str, port: int, *, name: str) -> socket.socket:
    """Held until all are chosen, so that no two are the same."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(1)  # a bind beside a listener can succeed, a second listener cannot
    except OSError as error:
        bound.close()
        raise ServerError(
            f"{name} {port} on {host} cannot be used ({error.strerror or error}); {_cure(error, name)}"
        ) from error
    return bound


def _cure(error: OSError, name: str) -> str:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return "give an address of this machine with --host"
    option = f"--{name.replace('_', '-')}"
    if error.errno == errno.EACCES:
        return f"give a {option} of 1024 or more"
    return f"stop what listens there, or give another {option}"


def admin_header(key: str) -> dict[str, str]:
    """The HTTP header that opens the restricted protocols."""
    return {_ADMIN: key}


def command(
    options: ServerOptions,
    *,
    binary: Path,
    backends: tuple[str, ...],
    repository: Path,
    region_prefix: str,
    admin_key: str,
) -> list[str]:
    """The tritonserver command line: explicit control of the four models, addresses, admin key, exit timeout."""
    return [
        str(binary),
        "--id=vitrail",
        f"--model-repository={repository}",
        *backends,
        f"--backend-config=python,shm-region-prefix-name={region_prefix}",
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in MODELS),
        # It would start every stub twice.
        "--disable-auto-complete-config",
        f"--exit-on-error={str(not options.keep_going).lower()}",
        f"--exit-timeout-secs={options.exit_timeout_s}",
        # Each object that is kept for the next request keeps the last one's pictures. By default there are eight.
        "--grpc-infer-allocation-pool-size=1",
        *_addresses(options),
        *_tls(options.tls),
        f"--grpc-restricted-protocol={','.join(options.restricted)}:{_ADMIN}={admin_key}",
        f"--http-restricted-api={','.join(options.restricted)}:{_ADMIN}={admin_key}",
        "--log-format=ISO8601",
        *_tracing(options),
        *options.extra_args,
    ]


def _tracing(options: ServerOptions) -> list[str]:
    if options.otel is None:
        return []
    settings = (
        "mode=opentelemetry",
        f"opentelemetry,url={collector_url(options.otel)}",
        f"opentelemetry,resource=service.name={SERVICE}",
        "level=TIMESTAMPS",
        f"rate={options.otel_rate}",
    )
    return [f"--trace-config={setting}" for setting in settings]


def _addresses(options: ServerOptions) -> list[str]:
    # Triton's HTTP library tells the families apart by a prefix.
    plain = f"ipv6:{options.plain_host}" if ":" in options.plain_host else options.plain_host
    return [
        f"--grpc-address={_bracketed(options.host)}",
        f"--grpc-port={options.grpc_port}",
        f"--http-address={plain}",
        f"--http-port={options.http_port}",
        f"--metrics-address={plain}",
        f"--metrics-port={options.metrics_port}",
    ]


def _tls(tls: Tls | None) -> list[str]:
    if tls is None:
        return []
    return ["--grpc-use-ssl=true", f"--grpc-server-cert={tls.certificate}", f"--grpc-server-key={tls.key}"]
