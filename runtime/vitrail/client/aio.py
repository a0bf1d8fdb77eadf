"""The asyncio client: only the sending. What is sent and what an answer means is in exchange.py and wire.py."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from vitrail.answer import collect
from vitrail.client.connection import ABORT_TIMEOUT_S, Connection, check_question
from vitrail.client.exchange import abort_request, config_request, contract_from_config
from vitrail.client.shm import UNREGISTER_PAUSES_S, Region, unregister_request
from vitrail.errors import Cancelled, InvalidInput, VitrailError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from typing_extensions import Self

    from vitrail.client.exchange import Exchange
    from vitrail.client.wire import Contract
    from vitrail.core import Completion, Delta, Prompt
    from vitrail.messages import Messages


class AsyncClient(Connection):
    """Asks a vitrail server from one event loop. Same `prompt`, `chat` and `stream` as `Client`.

    Pictures are cut, and their tiles copied, in a thread, so the loop stays free.
    """

    async def info(self) -> Contract:
        """What the server serves and its limits; asked once. Raises ServerError."""
        backoff = self.backoff()
        while self._contract is None:
            try:
                self._contract = contract_from_config(await self._unary("ModelConfig", config_request()))
            except VitrailError as error:  # noqa: PERF203 (that is what a retry is)
                await asyncio.sleep(backoff.pause_s(error))
        return self._contract

    async def prompt(self, messages: Messages, **options: Any) -> Prompt:
        """The prompt, tiles and reports that `chat` would send, without sending them."""
        contract = await self.info()
        return (await asyncio.to_thread(self.write_prompt, contract, messages, options))[0]

    async def chat(self, messages: Messages, **options: Any) -> Completion:
        """The whole answer."""
        return collect([delta async for delta in self.stream(messages, **options)])

    def stream(self, messages: Messages, **options: Any) -> AsyncGenerator[Delta, None]:
        """The answer as it grows. `aclose()` cancels, and so does cancelling the task that waits for it.

        Wrong messages and options raise here, wrong pictures at the first delta: they are opened in a thread.
        """
        check_question(messages, options)
        return self._answer(messages, options)

    async def close(self) -> None:
        """Cancel every live stream and let go of the connection."""
        await self._cancel(*self._live)
        for pause_s in UNREGISTER_PAUSES_S:
            if not self._leftover:
                break
            await self._unregister()
            await asyncio.sleep(pause_s)
        self._closed = True
        if "_channel" in self.__dict__:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _answer(self, messages: Messages, options: dict[str, Any]) -> AsyncGenerator[Delta, None]:
        self.require_open()
        contract = await self.info()
        exchange = await asyncio.to_thread(self.new_exchange, contract, messages, options)
        while True:
            try:
                async with aclosing(self._attempt(exchange)) as deltas:
                    async for delta in deltas:
                        yield delta
            except VitrailError as error:
                pause_s = exchange.pause_s(error)
            else:
                return
            await asyncio.sleep(pause_s)

    async def _attempt(self, exchange: Exchange) -> AsyncGenerator[Delta, None]:
        async with self._shared(exchange):
            requests = await asyncio.to_thread(exchange.next_requests)
            try:
                call = self._send(exchange, requests)
                while not exchange.done:
                    delta = exchange.receive(await _next(call, timeout_s=exchange.wait_s))
                    if delta is not None:
                        yield delta
            except asyncio.TimeoutError:
                raise exchange.overdue() from None
            except grpc.RpcError as error:
                raise self.failure(error) from error
            except asyncio.CancelledError:
                if exchange.request_id in self._live:
                    raise  # the task that waits was cancelled
                raise Cancelled("the client was closed while the answer was being written") from None
            finally:
                await self._settle(exchange)

    def _send(self, exchange: Exchange, requests: Sequence[bytes]) -> Any:
        self.require_open()
        call = self._stub.ModelStreamInfer(
            iter(requests), timeout=exchange.remaining_s, metadata=self.metadata
        )
        self._live[exchange.request_id] = call
        return call

    async def _settle(self, exchange: Exchange) -> None:
        if exchange.done:
            self._live.pop(exchange.request_id, None)
        else:
            await asyncio.shield(self._cancel(exchange.request_id))

    async def _cancel(self, *request_ids: str) -> None:
        """Stop calls, and tell the decoder: Triton does not carry a cancel through an ensemble."""
        calls = {name: call for name in request_ids if (call := self._live.pop(name, None))}
        for call in calls.values():
            call.cancel()
        if calls:
            aborts = [abort_request(request_id) for request_id in calls]
            with suppress(grpc.RpcError, grpc.aio.UsageError):  # UsageError: the channel is closed
                async for _ in self._stub.ModelStreamInfer(
                    aborts, timeout=ABORT_TIMEOUT_S, metadata=self.metadata
                ):
                    pass

    @asynccontextmanager
    async def _shared(self, exchange: Exchange) -> AsyncIterator[None]:
        if not (self.shared_memory and len(exchange.tiles)):
            yield
            return
        with Region(exchange.tiles) as region:
            await asyncio.to_thread(region.fill)
            await self._unary("SystemSharedMemoryRegister", region.register_request())
            exchange.region = region
            try:
                yield
            finally:
                self._leftover.add(region.name)
                await asyncio.shield(self._unregister())

    async def _unregister(self) -> None:
        """Have the server forget regions; one that it still reads stays for the next time."""
        for name in list(self._leftover):
            with suppress(VitrailError):
                await self._unary("SystemSharedMemoryUnregister", unregister_request(name))
                self._leftover.discard(name)

    async def _unary(self, method: str, request: Any) -> Any:
        self.require_open()
        call = getattr(self._stub, method)
        try:
            return await call(request, timeout=self.connect_timeout_s, metadata=self.metadata)
        except grpc.RpcError as error:
            raise self.failure(error, limit_s=self.connect_timeout_s) from error

    def require_open(self) -> None:
        """As every client, and in the loop where it was used first: gRPC's channels belong to one."""
        super().require_open()
        if self._loop is not asyncio.get_running_loop():
            raise InvalidInput("this client was used in another event loop; make one for each")

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    @cached_property
    def _channel(self) -> Any:
        return self.open_channel(grpc.aio)

    @cached_property
    def _stub(self) -> Any:
        return self.open_stub(self._channel)


async def _next(call: Any, *, timeout_s: float) -> Any:
    """The call's next message, None at the end. Raises TimeoutError when late."""
    message = await asyncio.wait_for(call.read(), timeout_s)
    return None if message is grpc.aio.EOF else message
