"""Two ways to carry one call: on an event loop, or blocking the calling thread.

Everything above is written once, as coroutines. Over `BlockingTransport` those coroutines never
suspend, so `run_to_end` can drive them without an event loop; that is all the sync client is.
Knows no method, no retry rule and no error of the SDK.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from molora_client.channel import Tls, channel_options
from molora_client.wire import Method, Reply

Metadata = tuple[tuple[str, str], ...]
Result = TypeVar("Result")
ReplyOut = TypeVar("ReplyOut", covariant=True)


class Replies(Protocol[ReplyOut]):
    """The messages of one streaming call."""

    async def next(self) -> ReplyOut | None:
        """The next message; None at the end of a stream whose status is OK.

        Raises:
            grpc.RpcError: The stream ended in any other status.
        """

    def cancel(self) -> None:
        """Gives the call up; does nothing once it has ended."""


class Transport(Protocol):
    """Carries calls; makes one channel per address and keeps it."""

    async def unary(
        self,
        address: str,
        method: Method[Reply],
        request: Message,
        metadata: Metadata,
        timeout_s: float,
    ) -> Reply:
        """Sends a request and waits for its reply.

        Raises:
            grpc.RpcError: The call ended in another status than OK.
        """

    def stream(
        self,
        address: str,
        method: Method[Reply],
        request: Message,
        metadata: Metadata,
        timeout_s: float,
    ) -> Replies[Reply]:
        """Sends a request whose replies stream back."""

    async def sleep(self, seconds: float) -> None:
        """Waits."""

    async def close(self) -> None:
        """Closes every channel; open calls are cancelled."""


class AioTransport:
    """On the running event loop."""

    def __init__(self, tls: Tls | None) -> None:
        self._tls = tls
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def unary(
        self,
        address: str,
        method: Method[Reply],
        request: Message,
        metadata: Metadata,
        timeout_s: float,
    ) -> Reply:
        """See `Transport.unary`."""
        call = self._channel(address).unary_unary(
            method.path, type(request).SerializeToString, method.reply.FromString
        )
        reply: Reply = await call(request, timeout=timeout_s, metadata=metadata)
        return reply

    def stream(
        self,
        address: str,
        method: Method[Reply],
        request: Message,
        metadata: Metadata,
        timeout_s: float,
    ) -> Replies[Reply]:
        """See `Transport.stream`."""
        call = self._channel(address).unary_stream(
            method.path, type(request).SerializeToString, method.reply.FromString
        )
        return _AioReplies(call(request, timeout=timeout_s, metadata=metadata))

    async def sleep(self, seconds: float) -> None:
        """See `Transport.sleep`."""
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        """See `Transport.close`."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()

    def _channel(self, address: str) -> grpc.aio.Channel:
        # Made on first use: a channel belongs to the loop that runs when it is made.
        if address not in self._channels:
            options = channel_options(address, self._tls)
            self._channels[address] = (
                grpc.aio.secure_channel(address, self._tls.credentials(), options)
                if self._tls
                else grpc.aio.insecure_channel(address, options)
            )
        return self._channels[address]


class _AioReplies:
    def __init__(self, call: Any) -> None:
        self._call = call

    async def next(self) -> Any:
        message = await self._call.read()
        return None if message is grpc.aio.EOF else message

    def cancel(self) -> None:
        self._call.cancel()


class BlockingTransport:
    """In the calling thread; threads may share it."""

    def __init__(self, tls: Tls | None) -> None:
        self._tls = tls
        self._channels: dict[str, grpc.Channel] = {}
        self._lock = threading.Lock()

    async def unary(
        self,
        address: str,
        method: Method[Reply],
        request: Message,
        metadata: Metadata,
        timeout_s: float,
    ) -> Reply:
        """See `Transport.unary`."""
        call = self._channel(address).unary_unary(
            method.path, type(request).SerializeToString, method.reply.FromString
        )
        reply: Reply = call(request, timeout=timeout_s, metadata=metadata)
        return reply

    def stream(
        self,
        address: str,
        method: Method[Reply],
        request: Message,
        metadata: Metadata,
        timeout_s: float,
    ) -> Replies[Reply]:
        """See `Transport.stream`."""
        call = self._channel(address).unary_stream(
            method.path, type(request).SerializeToString, method.reply.FromString
        )
        return _BlockingReplies(call(request, timeout=timeout_s, metadata=metadata))

    async def sleep(self, seconds: float) -> None:
        """See `Transport.sleep`."""
        time.sleep(seconds)  # noqa: ASYNC251 - no loop runs here

    async def close(self) -> None:
        """See `Transport.close`."""
        with self._lock:
            channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.close()

    def _channel(self, address: str) -> grpc.Channel:
        with self._lock:
            if address not in self._channels:
                options = channel_options(address, self._tls)
                self._channels[address] = (
                    grpc.secure_channel(address, self._tls.credentials(), options)
                    if self._tls
                    else grpc.insecure_channel(address, options)
                )
            return self._channels[address]


class _BlockingReplies:
    def __init__(self, call: Any) -> None:
        self._call = call

    async def next(self) -> Any:
        return next(self._call, None)

    def cancel(self) -> None:
        self._call.cancel()


def run_to_end(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Runs a coroutine that never suspends, in this thread.

    Args:
        coroutine: Awaits nothing but calls over a `BlockingTransport`.

    Returns:
        What it returns.

    Raises:
        Exception: What it raises.
    """
    try:
        coroutine.send(None)
    except StopIteration as finished:
        result: Result = finished.value
        return result
    coroutine.close()
    raise AssertionError("a call over BlockingTransport suspended")
