"""Screens that were looked at already, held under unguessable ids.

Knows ids, bytes and time; does not know what a context holds.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from executor_service.errors import context_expired
from service_chassis.errors import ResourceExhausted

_ID_BYTES = 24


class Sized(Protocol):
    """What a context must say about itself."""

    @property
    def nbytes(self) -> int:
        """Bytes it keeps in memory."""


Entry = TypeVar("Entry", bound=Sized)


class ContextCache(Generic[Entry]):
    """A bounded cache; the least recently used entry goes first. For one thread.

    An id is a capability: whoever holds it may use the entry, and nothing can be listed.

    Args:
        max_bytes: What all entries together may keep in memory.
        ttl_s: Life of an entry from `put`, in seconds; use does not prolong it.
        clock: Monotonic time in seconds.
    """

    def __init__(
        self, *, max_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._clock = clock
        self._entries: OrderedDict[str, tuple[Entry, float]] = OrderedDict()
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Bytes of all entries."""
        return self._held_bytes

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, entry: Entry) -> str:
        """Keep an entry, evicting others for it.

        Returns:
            Its id.

        Raises:
            ResourceExhausted: The entry alone is larger than the whole cache.
        """
        if entry.nbytes > self._max_bytes:
            raise ResourceExhausted(
                "CONTEXT_TOO_LARGE",
                "The screen is too large to be held here; send a smaller one.",
                max_context_bytes=self._max_bytes,
            )
        self.sweep()
        while self._held_bytes + entry.nbytes > self._max_bytes:
            self._drop(next(iter(self._entries)))
        context_id = secrets.token_urlsafe(_ID_BYTES)
        self._entries[context_id] = (entry, self._clock() + self._ttl_s)
        self._held_bytes += entry.nbytes
        return context_id

    def get(self, context_id: str) -> Entry:
        """The entry of an id; counts as a use.

        Raises:
            NotFound: Unknown, expired or evicted (reason CONTEXT_EXPIRED in each case).
        """
        self.sweep()
        held = self._entries.get(context_id)
        if held is None:
            raise context_expired()
        self._entries.move_to_end(context_id)
        return held[0]

    def sweep(self) -> None:
        """Drop what has expired; screens must not outlive their time on an idle server."""
        now = self._clock()
        for context_id in [key for key, (_, end_s) in self._entries.items() if now >= end_s]:
            self._drop(context_id)

    def _drop(self, context_id: str) -> None:
        entry, _ = self._entries.pop(context_id)
        self._held_bytes -= entry.nbytes
