"""What a failed call means to a user, and whether it is worth another try."""

from __future__ import annotations

import random
from dataclasses import dataclass

import grpc

from vitrail.client.wire import known_error
from vitrail.errors import Busy, Cancelled, DeadlineExceeded, InvalidInput, ServerError, VitrailError

_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 5.0
# What gRPC says of a call that this process cancelled, and of one whose channel it closed.
_ENDED_HERE = ("Locally cancelled by application!", "Channel closed!")
# What its asyncio half says, in place of the server's status, where the call was over before all was sent.
_ENDED_EARLY = "Internal error from Core"
# What it says where the two sides agree on no encryption.
_NO_TLS = ("Tls handshake failed", "Ssl handshake failed", "CERTIFICATE_VERIFY_FAILED")


@dataclass(slots=True)
class Backoff:
    """Pauses that double, with jitter, for `retries` tries."""

    retries: int
    tries: int = 0

    def pause_s(self, error: VitrailError) -> float:
        """Seconds to wait before the next try; raises `error` where another try is not due."""
        if self.tries >= self.retries or not is_transient(error):
            raise error
        self.tries += 1
        pause_s = _FIRST_PAUSE_S * 2.0 ** (self.tries - 1)
        return min(pause_s, _LONGEST_PAUSE_S) * random.uniform(0.8, 1.2)  # noqa: S311 (jitter is no secret)


def is_transient(error: VitrailError) -> bool:
    """Busy, or a server that could not be reached: the request has not been answered and may be sent again."""
    return isinstance(error, Busy) or is_unreachable(error.__cause__)


def is_unreachable(error: BaseException | None) -> bool:
    """Whether the server is away: it refuses connections, or ended the call because it is stopping."""
    return isinstance(error, grpc.RpcError) and (
        error.code() is grpc.StatusCode.UNAVAILABLE or _is_dropped(error)
    )


def _is_dropped(error: grpc.RpcError) -> bool:
    """Whether the other side cancelled the call: a server that stops, or a proxy before it, ends live calls so."""
    code, details = error.code(), error.details()
    if code is grpc.StatusCode.INTERNAL:
        return bool(details == _ENDED_EARLY)
    return code is grpc.StatusCode.CANCELLED and details not in _ENDED_HERE


def error_from_rpc(error: grpc.RpcError, *, target: str) -> VitrailError:
    """The error to raise, from `error`, for a call to `target` that failed."""
    code, details = error.code(), str(error.details() or "")
    if told := known_error(details):
        return told
    if _is_dropped(error):
        return ServerError(
            f"{target}: the server, or a proxy before it, ended the call; ask again once it serves ({details[:300]})"
        )
    if any(words in details for words in _NO_TLS):
        return ServerError(
            f"{target}: the server cannot be reached by TLS; ask a server without TLS by grpc://, one whose "
            f"certificate is its own with that authority (TLS(ca=…), --tls-ca) ({details[:300]})"
        )
    name = code.name if code else "UNKNOWN"
    kind, text = _MEANINGS.get(name, (ServerError, "the call failed"))
    return kind(f"{target}: {text} ({name}: {details[:300]})")


_MEANINGS: dict[str, tuple[type[VitrailError], str]] = {
    "UNAVAILABLE": (
        ServerError,
        (
            "the server cannot be reached; see that `vitrail serve` runs and that this is its gRPC port, "
            "not the HTTP port; one with TLS is asked by grpcs://"
        ),
    ),
    "DEADLINE_EXCEEDED": (
        DeadlineExceeded,
        "the server did not answer in time; give the request a longer deadline",
    ),
    "CANCELLED": (Cancelled, "the request was cancelled"),
    "UNIMPLEMENTED": (ServerError, "this is no Triton gRPC server; give the gRPC port of `vitrail serve`"),
    "NOT_FOUND": (ServerError, "the server does not serve this model; start it with `vitrail serve DIR`"),
    "UNAUTHENTICATED": (ServerError, "the server wants credentials; give them as headers"),
    "PERMISSION_DENIED": (ServerError, "the server refused these credentials; give others as headers"),
    "RESOURCE_EXHAUSTED": (InvalidInput, "the request is too large; lower max_tiles or send fewer pictures"),
}
