"""Screens that were looked at already, held under unguessable ids.

Knows ids, contents by digest, bytes and time; does not know what a context holds.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

from executor_service.engine.kept import Kept, Value
from executor_service.errors import context_expired
from service_chassis.errors import ResourceExhausted

_ID_BYTES = 24


@dataclass(frozen=True)
class _Ticket:
    content: bytes
    end_s: float


class ContextCache(Generic[Value]):
    """A bounded cache; the least recently used entry goes first. For one thread.

    An id is a capability: whoever holds it may use the entry, and nothing can be listed. A screen
    that is sent again is the same entry under a new id, kept once.

    Args:
        max_bytes: What all entries together may keep in memory.
        ttl_s: Life of an id from `put`, in seconds; use does not prolong it.
        clock: Monotonic time in seconds.
    """

    def __init__(
        self, *, max_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._clock = clock
        self._entries: Kept[bytes, Value] = Kept(max_bytes)
        self._ids: dict[str, _Ticket] = {}

    @property
    def held_bytes(self) -> int:
        """Bytes of all entries."""
        return self._entries.nbytes

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, content: bytes, entry: Value) -> str:
        """Keep an entry, evicting others for it.

        Args:
            content: Digest of everything that decides what the entry is.
            entry: Made from that content.

        Returns:
            A new id.

        Raises:
            ResourceExhausted: The entry alone is larger than the whole cache.
        """
        self.sweep()
        if not self._entries.put(content, entry):
            raise ResourceExhausted(
                "CONTEXT_TOO_LARGE",
                "The screen is too large to be held here; send a smaller one.",
                max_context_bytes=self._max_bytes,
            )
        context_id = secrets.token_urlsafe(_ID_BYTES)
        self._ids[context_id] = _Ticket(content, self._clock() + self._ttl_s)
        return context_id

    def get(self, context_id: str) -> Value:
        """The entry of an id; counts as a use.

        Raises:
            NotFound: Unknown, expired or evicted (reason CONTEXT_EXPIRED in each case).
        """
        self.sweep()
        ticket = self._ids.get(context_id)
        entry = self._entries.get(ticket.content) if ticket is not None else None
        if entry is None:
            raise context_expired()
        return entry

    def find(self, content: bytes) -> Value | None:
        """The entry of a content that is held already; counts as a use."""
        self.sweep()
        return self._entries.get(content)

    def sweep(self) -> None:
        """Drop what no id leads to any more; screens must not outlive their time on an idle server.

        An id ends with its time or with its entry, an entry with the last of its ids.
        """
        now = self._clock()
        self._ids = {
            key: ticket
            for key, ticket in self._ids.items()
            if now < ticket.end_s and ticket.content in self._entries
        }
        wanted = {ticket.content for ticket in self._ids.values()}
        for content in self._entries.keys() - wanted:
            self._entries.drop(content)
