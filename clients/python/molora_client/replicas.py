"""Which of several servers gets the next call: those that serve take turns.

Knows addresses and what each last said about its health; asks nobody itself.
"""

from __future__ import annotations

import threading
import time

from molora_client.errors import InvalidArgumentError

# As long as the servers' own checks of each other: a drain lasts longer than that.
BELIEVED_S = 2.0


class Replicas:
    """Servers that can stand in for each other; threads may share it.

    Args:
        addresses: `host:port`, or several of them with commas between.
        service: Full name of the service that they all have.

    Raises:
        InvalidArgumentError: There is no address.
    """

    def __init__(self, addresses: str, service: str) -> None:
        self.addresses = tuple(part.strip() for part in addresses.split(",") if part.strip())
        self.service = service
        if not self.addresses:
            raise InvalidArgumentError(
                f"give the address of a server that has {service}", reason="NO_ADDRESS"
            )
        self._lock = threading.Lock()
        self._next = 0
        self._serving: dict[str, bool] = {}
        self._asked_s: dict[str, float] = {}

    def in_turn(self) -> tuple[str, ...]:
        """Every address once, first the one whose turn it is; the turn goes on."""
        with self._lock:
            first = self._next
            self._next = (first + 1) % len(self.addresses)
            return self.addresses[first:] + self.addresses[:first]

    def take(self, address: str) -> None:
        """Notes that this one got the call: those that were passed over do not count as a turn."""
        with self._lock:
            self._next = (self.addresses.index(address) + 1) % len(self.addresses)

    def is_serving(self, address: str) -> bool | None:
        """What is believed of a server.

        Returns:
            Whether it serves; None if it should be asked now. While the one who got None asks,
            the others go by what it said before.
        """
        with self._lock:
            now_s = time.monotonic()
            before = self._serving.get(address)
            if before is not None and now_s - self._asked_s[address] < BELIEVED_S:
                return before
            if before is not None:
                self._asked_s[address] = now_s
            return None

    def note(self, address: str, *, serving: bool) -> None:
        """What a server said, or what became of a call to it."""
        with self._lock:
            self._serving[address] = serving
            self._asked_s[address] = time.monotonic()
