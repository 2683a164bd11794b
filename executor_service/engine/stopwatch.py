"""Where one request's time goes. Knows phases by name; does not know what happens in them."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator


class Stopwatch:
    """Starts when it is made. Used by one thread at a time."""

    def __init__(self) -> None:
        self._made_s = time.perf_counter()
        self._spent_s: defaultdict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Count the time inside towards a phase."""
        begin_s = time.perf_counter()
        try:
            yield
        finally:
            self._spent_s[phase] += time.perf_counter() - begin_s

    def spent_ms(self, phase: str) -> float:
        """Time counted towards a phase so far."""
        return self._spent_s.get(phase, 0.0) * 1000

    def total_ms(self) -> float:
        """Time since it was made."""
        return (time.perf_counter() - self._made_s) * 1000


@contextlib.contextmanager
def during_all(watches: Iterable[Stopwatch], phase: str) -> Iterator[None]:
    """Count the time inside towards a phase of every request that shares it."""
    with contextlib.ExitStack() as stack:
        for watch in watches:
            stack.enter_context(watch.during(phase))
        yield
