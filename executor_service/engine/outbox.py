"""Carries events from the worker thread to one coroutine.

Knows threads and the event loop; does not know what the events are.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Generic, TypeVar

Event = TypeVar("Event")


@dataclass(frozen=True)
class _Failure:
    error: BaseException


class Outbox(Generic[Event]):
    """An unbounded mailbox with one reader: the writer never waits for a slow client.

    What may pile up is bounded by the request itself (one event per token at most). Make it on
    the reader's event loop.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event | _Failure] = asyncio.Queue()

    def put(self, event: Event) -> None:
        """Hand over an event; from any thread."""
        self._post(event)

    def fail(self, error: BaseException) -> None:
        """Raise an error in the reader, after the events before it; from any thread."""
        self._post(_Failure(error))

    async def get(self) -> Event:
        """The next event.

        Raises:
            BaseException: What `fail` was called with.
        """
        event = await self._queue.get()
        if isinstance(event, _Failure):
            raise event.error
        return event

    def _post(self, event: Event | _Failure) -> None:
        # A loop that is closed has no reader left.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)
