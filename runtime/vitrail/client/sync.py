"""The blocking client: only the sending. What is sent and what an answer means is in exchange.py and wire.py."""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import contextmanager, suppress
from functools import cached_property
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import grpc

from vitrail.answer import collect
from vitrail.client.connection import ABORT_TIMEOUT_S, Connection, check_question
from vitrail.client.exchange import abort_request, config_request, contract_from_config
from vitrail.client.shm import UNREGISTER_PAUSES_S, Region, unregister_request
from vitrail.errors import VitrailError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from typing_extensions import Self

    from vitrail.client.exchange import Exchange
    from vitrail.client.wire import Contract
    from vitrail.core import Completion, Delta, Prompt
    from vitrail.messages import Messages


# Threads share a client, and since Python 3.12 cached_property lets two of them open a channel each.
_OPENING = threading.Lock()


class Client(Connection):
    """Asks a vitrail server. Same `prompt`, `chat` and `stream` as `vitrail.Engine`; threads may share one.

    >>> with Client("localhost:8001") as client:  # doctest: +SKIP
    ...     print(client.chat("Why is the sky blue?", max_tokens=64).text)
    """

    def info(self) -> Contract:
        """What the server serves and its limits; asked once. Raises ServerError."""
        backoff = self.backoff()
        while self._contract is None:
            try:
                self._contract = contract_from_config(self._unary("ModelConfig", config_request()))
            except VitrailError as error:  # noqa: PERF203 (that is what a retry is)
                time.sleep(backoff.pause_s(error))
        return self._contract

    def prompt(self, messages: Messages, **options: Any) -> Prompt:
        """The prompt, tiles and reports that `chat` would send, without sending them."""
        return self.write_prompt(self.info(), messages, options)[0]

    def chat(self, messages: Messages, **options: Any) -> Completion:
        """The whole answer."""
        return collect(self.stream(messages, **options))

    def stream(self, messages: Messages, **options: Any) -> Generator[Delta, None, None]:
        """The answer as it grows. Wrong input raises here, before the first `next`; closing the iterator cancels."""
        self.require_open()
        check_question(messages, options)
        exchange = self.new_exchange(self.info(), messages, options)
        return self._answer(exchange)

    def close(self) -> None:
        """Cancel every live stream and let go of the connection."""
        self._cancel(*self._live)
        for pause_s in UNREGISTER_PAUSES_S:
            if not self._leftover:
                break
            self._unregister()
            time.sleep(pause_s)
        self._closed = True
        if "_channel" in self.__dict__:
            self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, exchange: Exchange) -> Generator[Delta, None, None]:
        while True:
            try:
                yield from self._attempt(exchange)
            except VitrailError as error:
                pause_s = exchange.pause_s(error)
            else:
                return
            time.sleep(pause_s)

    def _attempt(self, exchange: Exchange) -> Iterator[Delta]:
        with self._shared(exchange):
            try:
                inbox = _Inbox(self._send(exchange))
                while not exchange.done:
                    delta = exchange.receive(inbox.get(exchange.wait_s))
                    if delta is not None:
                        yield delta
            except Empty:
                raise exchange.overdue() from None
            except grpc.RpcError as error:
                raise self.failure(error) from error
            finally:
                self._settle(exchange)

    def _send(self, exchange: Exchange) -> Any:
        self.require_open()
        requests = exchange.next_requests()
        call = self._stub.ModelStreamInfer(
            iter(requests), timeout=exchange.remaining_s, metadata=self.metadata
        )
        self._live[exchange.request_id] = call
        return call

    def _settle(self, exchange: Exchange) -> None:
        if exchange.done:
            self._live.pop(exchange.request_id, None)
        else:
            self._cancel(exchange.request_id)

    def _cancel(self, *request_ids: str) -> None:
        """Stop calls, and tell the decoder: Triton does not carry a cancel through an ensemble."""
        calls = {name: call for name in request_ids if (call := self._live.pop(name, None))}
        for call in calls.values():
            call.cancel()
        if calls:
            aborts = map(abort_request, calls)
            with suppress(grpc.RpcError, ValueError):  # ValueError: the channel is closed
                deque(self._stub.ModelStreamInfer(aborts, timeout=ABORT_TIMEOUT_S, metadata=self.metadata), 0)

    @contextmanager
    def _shared(self, exchange: Exchange) -> Iterator[None]:
        if not (self.shared_memory and len(exchange.tiles)):
            yield
            return
        with Region(exchange.tiles) as region:
            region.fill()
            self._unary("SystemSharedMemoryRegister", region.register_request())
            exchange.region = region
            try:
                yield
            finally:
                self._leftover.add(region.name)
                self._unregister()

    def _unregister(self) -> None:
        """Have the server forget regions; one that it still reads stays for the next time."""
        for name in list(self._leftover):
            with suppress(VitrailError):
                self._unary("SystemSharedMemoryUnregister", unregister_request(name))
                self._leftover.discard(name)

    def _unary(self, method: str, request: Any) -> Any:
        self.require_open()
        call = getattr(self._stub, method)
        try:
            return call(request, timeout=self.connect_timeout_s, metadata=self.metadata)
        except grpc.RpcError as error:
            raise self.failure(error, limit_s=self.connect_timeout_s) from error

    @cached_property
    def _channel(self) -> Any:
        return self.open_channel(grpc)

    @property
    def _stub(self) -> Any:
        with _OPENING:
            return self._opened_stub

    @cached_property
    def _opened_stub(self) -> Any:
        return self.open_stub(self._channel)


class _Inbox:
    """A call's messages, waited for with a limit: gRPC's own iterator has none."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._messages: SimpleQueue[Any] = SimpleQueue()
        threading.Thread(target=self._fill, name="vitrail-stream", daemon=True).start()

    def get(self, timeout_s: float) -> Any:
        """The next message, None at the end. Raises queue.Empty when late, grpc.RpcError where the call failed."""
        message = self._messages.get(timeout=timeout_s)
        if isinstance(message, grpc.RpcError):
            raise message
        return message

    def _fill(self) -> None:
        try:
            for message in self._call:
                self._messages.put(message)
        except grpc.RpcError as error:
            self._messages.put(error)
        else:
            self._messages.put(None)
