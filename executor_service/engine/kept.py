"""A bounded memory: values by key, the least recently used go first.

Knows keys, bytes and order; does not know what is kept or for how long it is good.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """What a value must say about itself."""

    @property
    def nbytes(self) -> int:
        """Bytes it keeps in memory."""


Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value", bound=Sized)


class Kept(Generic[Key, Value]):
    """For one thread.

    Whoever was given a value may use it for as long as it likes: an evicted one is only forgotten.

    Args:
        max_bytes: What all values together may keep in memory.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: Key) -> bool:
        return key in self._values

    def keys(self) -> set[Key]:
        """Everything that is kept."""
        return set(self._values)

    def put(self, key: Key, value: Value) -> bool:
        """Keep a value in the place of any with its key, evicting others for it.

        Returns:
            Whether it is kept: alone it may be larger than everything allowed.
        """
        self.drop(key)
        if value.nbytes > self._max_bytes:
            return False
        while self.nbytes + value.nbytes > self._max_bytes:
            self.drop(next(iter(self._values)))
        self._values[key] = value
        self.nbytes += value.nbytes
        return True

    def get(self, key: Key) -> Value | None:
        """The value of a key, if it is kept; counts as a use."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def drop(self, key: Key) -> None:
        """Forget a key; unknown ones are no error."""
        value = self._values.pop(key, None)
        if value is not None:
            self.nbytes -= value.nbytes
