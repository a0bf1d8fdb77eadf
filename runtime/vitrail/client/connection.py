"""What both clients know before they send anything: the address, the limits, and how to read a failure."""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import urlsplit

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from vitrail.client.exchange import Exchange
from vitrail.client.failure import Backoff, error_from_rpc, is_unreachable
from vitrail.client.wire import DECODER, ENSEMBLE, Contract, prompt_to_json
from vitrail.core import GenerateOptions, Prompt
from vitrail.errors import InvalidInput, OptionError, ServerError, VitrailError
from vitrail.messages import read_messages
from vitrail.options import MAX_DEADLINE_S, read_options
from vitrail.pictures import Pictures
from vitrail.prompt import render
from vitrail.request import require_room, require_text_room

if TYPE_CHECKING:
    from vitrail.messages import Messages

Route: TypeAlias = Literal["auto", "ensemble", "direct"]

DEFAULT_PORT = 8001
ABORT_TIMEOUT_S = 2.0
_MESSAGE_LIMIT_BYTES = 64 << 20
_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
_HEADER_NAME = re.compile(r"[0-9a-z_.-]+")
# Triton reads a `traceparent` up to the next zero byte, past its end (so did OpenTelemetry's own example: its pull
# request 3304). A header after it begins with one; what else may follow made 3 of 100 requests lose their trace.
_LAST_HEADER = ("x-client", "vitrail")


@dataclass(frozen=True, slots=True)
class TLS:
    """PEM files: `ca` of the server's authority (None: the system's), `certificate` and `key` for mutual TLS."""

    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(
            root_certificates=_read_pem(self.ca),
            private_key=_read_pem(self.key),
            certificate_chain=_read_pem(self.certificate),
        )


@dataclass(kw_only=True, eq=False)
class Connection:
    """A server's address and how to deal with it.

    url: `host:port` of the server's gRPC port (`localhost`, `grpc://host:8001`; `grpcs://…` for TLS; `unix:/path`).
    route: "ensemble" runs pictures through the Triton ensemble `internvl`, "direct" lets the decoder call the vision
    models itself (a cancel then also stops work without a second message); "auto" is the ensemble, unless it takes
    fewer tiles or the decoder would hand them on in parts. Text alone always goes to the decoder.
    connect_timeout_s bounds the first answer of the server; idle_timeout_s the silence within an answer that has
    begun; deadline_s a whole request (waiting in the server's queue included) that brings no `deadline_s` of its own.
    retries: how often a request is sent again after "busy" or "unreachable", before its first token only.
    shared_memory: hand tiles over in /dev/shm, for a server on this machine. A client that is killed leaves none
    there, but the server keeps its copy mapped until it ends itself.
    """

    url: str = field(kw_only=False)
    route: Route = "auto"
    connect_timeout_s: float = 10.0
    idle_timeout_s: float = 120.0
    deadline_s: float = 600.0
    retries: int = 2
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    tls: bool | TLS = False
    shared_memory: bool = False
    target: str = field(init=False)
    metadata: tuple[tuple[str, str], ...] = field(init=False, repr=False)
    _contract: Contract | None = field(init=False, default=None, repr=False)
    _live: dict[str, Any] = field(init=False, default_factory=dict, repr=False)
    _leftover: set[str] = field(init=False, default_factory=set, repr=False)
    _pictures: Pictures = field(init=False, default_factory=Pictures, repr=False)
    _closed: bool = field(init=False, default=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.url, str):
            raise OptionError(f"the server's address is of type {type(self.url).__name__}; {_URL_CURE}")
        self.target, secure = parse_url(self.url)
        self.tls = self.tls or secure
        if not isinstance(self.headers, Mapping):
            raise OptionError(
                f"headers are of type {type(self.headers).__name__}; give a mapping of names to values"
            )
        self.metadata = (*(_header(name, value) for name, value in self.headers.items()), _LAST_HEADER)
        if self.route not in ("auto", "ensemble", "direct"):
            raise OptionError(f"route is {self.route!r}; give 'auto', 'ensemble' or 'direct'")
        for name in ("connect_timeout_s", "idle_timeout_s", "deadline_s"):
            if not _is_time(getattr(self, name)):
                raise OptionError(
                    f"{name} is {getattr(self, name)!r}; give seconds above 0, at most {MAX_DEADLINE_S} (a week)"
                )
        if not isinstance(self.retries, int) or isinstance(self.retries, bool) or self.retries < 0:
            raise OptionError(f"retries is {self.retries!r}; give an integer, 0 or more")
        if not isinstance(self.tls, (bool, TLS)):
            raise OptionError(f"tls is {self.tls!r}; give True, False or a TLS of PEM files")
        if not isinstance(self.shared_memory, bool):
            raise OptionError(f"shared_memory is {self.shared_memory!r}; give True or False")
        if self.shared_memory and not is_local(self.target):
            raise OptionError(
                f"shared_memory needs a server on this machine, '{self.target}' is another; leave it off"
            )

    @property
    def channel_options(self) -> list[tuple[str, int]]:
        """No size limit on tiles, no hidden retries, quick reconnection, no proxy to this very machine."""
        return [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", _MESSAGE_LIMIT_BYTES),
            ("grpc.enable_retries", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.enable_http_proxy", int(not is_local(self.target))),
        ]

    def require_open(self) -> None:
        if self._closed:
            raise InvalidInput("this client is closed; make a new one")

    def open_channel(self, module: Any) -> Any:
        """A channel of `module`, grpc or grpc.aio."""
        if not self.tls:
            return module.insecure_channel(self.target, options=self.channel_options)
        tls = self.tls if isinstance(self.tls, TLS) else TLS()
        return module.secure_channel(self.target, tls.credentials(), options=self.channel_options)

    def open_stub(self, channel: Any) -> Any:
        """Triton's methods; requests to ModelStreamInfer are serialized already (see Exchange)."""
        stub = GRPCInferenceServiceStub(channel)
        stub.ModelStreamInfer = channel.stream_stream(
            _STREAM, response_deserializer=pb.ModelStreamInferResponse.FromString
        )
        return stub

    def backoff(self) -> Backoff:
        return Backoff(retries=self.retries)

    def failure(self, error: Any, *, limit_s: float | None = None) -> VitrailError:
        """The error to raise from a gRPC error. A server that went away may come back with another contract.

        limit_s: the time limit of a call that asks for no generation, so that being late is the server's fault.
        """
        if is_unreachable(error):
            self._contract = None
        if limit_s is not None and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return ServerError(
                f"{self.target}: no answer within {limit_s:g} s; see that the server is well, or raise connect_timeout_s"
            )
        return error_from_rpc(error, target=self.target)

    def write_prompt(
        self, contract: Contract, messages: Messages, options: dict[str, Any]
    ) -> tuple[Prompt, GenerateOptions]:
        """Cut the pictures and write the prompt as the server's contract says. Raises InvalidInput and its kinds."""
        prompt_options, generate_options = read_options(**options)
        prompt = render(
            messages,
            contract=contract.prompt,
            tile_size=contract.tile_size,
            tokens_per_tile=contract.tokens_per_tile,
            options=prompt_options,
            cut=self._pictures.cut,
        )
        return prompt, generate_options

    def _model(self, contract: Contract, tiles: int) -> str:
        """Who is asked. The decoder splits more tiles than the ensemble takes at once, or than need be on their way."""
        if not tiles or self.route == "direct":
            return DECODER
        if self.route == "auto" and _exceeds(tiles, contract.look_tiles):
            return DECODER
        if not _exceeds(tiles, contract.ensemble_tiles):
            return ENSEMBLE
        if self.route == "ensemble":
            raise InvalidInput(
                f"the pictures make {tiles} tiles, this server's ensemble takes {contract.ensemble_tiles} in one request; "
                "take the direct route, or lower max_tiles"
            )
        return DECODER

    def new_exchange(self, contract: Contract, messages: Messages, options: dict[str, Any]) -> Exchange:
        """A request, ready to be sent. Raises InvalidInput and its kinds (PromptTooLong for pictures alone)."""
        started = time.perf_counter()
        prompt, generate_options = self.write_prompt(contract, messages, options)
        tiles = len(prompt.tiles)
        if tiles > contract.max_request_tiles:
            raise InvalidInput(
                f"the pictures make {tiles} tiles, the server takes {contract.max_request_tiles} in one request; "
                "lower max_tiles or send fewer pictures"
            )
        require_text_room(prompt.segments, context_tokens=contract.context_tokens)
        if tiles:
            # The decoder would say so too, but after the vision encoder has seen every tile.
            visual_tokens = sum(image.visual_tokens for image in prompt.images)
            require_room(
                "the pictures alone make",
                visual_tokens,
                generate_options.max_tokens,
                context_tokens=contract.context_tokens,
            )
        model = self._model(contract, tiles)
        return Exchange(
            prompt_json=prompt_to_json(prompt, preprocess_ms=(time.perf_counter() - started) * 1e3),
            tiles=prompt.tiles,
            options=generate_options,
            model=model,
            announces=contract.announces and model == ENSEMBLE,
            deadline_s=generate_options.deadline_s or self.deadline_s,
            idle_timeout_s=self.idle_timeout_s,
            backoff=self.backoff(),
        )


def check_question(messages: Messages, options: dict[str, Any]) -> None:
    """Raise InvalidInput and its kinds for what is wrong without a look at the pictures; needs no server."""
    read_options(**options)
    read_messages(messages)


def _is_time(seconds: Any) -> bool:
    is_number = isinstance(seconds, Real) and not isinstance(seconds, bool)
    return is_number and bool(0 < seconds <= MAX_DEADLINE_S)


def parse_url(url: str) -> tuple[str, bool]:
    """The gRPC target that a URL means, and whether it asks for TLS. Raises OptionError naming the cure."""
    if url.startswith("unix:") and len(url) > len("unix:"):
        return url, False
    try:
        parts = urlsplit(url if "://" in url else f"grpc://{url}")
        host, port = parts.hostname, DEFAULT_PORT if parts.port is None else parts.port
    except ValueError as error:
        raise OptionError(f"'{url}' is no server address ({error}); {_URL_CURE}") from error
    if parts.scheme in {"http", "https"}:
        raise OptionError(
            f"'{url}' is an HTTP address; give the server's gRPC port as HOST:PORT, usually {host}:{DEFAULT_PORT}"
        )
    extra = parts.path.strip("/") or parts.query or parts.fragment or parts.username
    if parts.scheme not in {"grpc", "grpcs"} or not host or not port or extra or re.search(r"\s", url):
        raise OptionError(f"'{url}' is no server address; {_URL_CURE}")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}", parts.scheme == "grpcs"


_URL_CURE = f"give HOST:PORT (localhost:{DEFAULT_PORT}), grpc://HOST:PORT, or grpcs://HOST:PORT for TLS"


def is_local(target: str) -> bool:
    """Whether a target lies on this machine, as far as its name tells."""
    host = target.rpartition(":")[0].strip("[]")
    if target.startswith("unix:") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _header(name: str, value: str) -> tuple[str, str]:
    if not (isinstance(name, str) and isinstance(value, str)):
        raise OptionError(f"header {name!r} has the value {value!r}; give strings")
    lowered = name.lower()
    if not _HEADER_NAME.fullmatch(lowered) or lowered.startswith("grpc-") or lowered.endswith("-bin"):
        raise OptionError(f"header name '{name}' is not allowed; use letters, digits, '-', '_' and '.'")
    if not (value.isascii() and value.isprintable()):
        raise OptionError(f"the value of header '{name}' is not printable ASCII; encode it")
    return lowered, value


def _read_pem(path: str | Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise OptionError(f"cannot read the TLS file '{path}' ({error.strerror}); give a PEM file") from error
    if b"-----BEGIN " not in content:
        raise OptionError(f"the TLS file '{path}' is no PEM file (it has no -----BEGIN); give one that is")
    return content


def _exceeds(tiles: int, limit: int | None) -> bool:
    return limit is not None and tiles > limit
