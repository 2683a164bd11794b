"""How long calls of the SDK take, one by one and from several callers. Knows no flag.

A router that abstains has answered: its calls count, and how many they were is stated.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from molora_client import Molora, MoloraError

WARM_UP_CALLS = 3
_ABSTAINED = "ABSTAINED"

Ask = tuple[str, bytes]
Progress = Callable[[int, int], None]
_Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """One kind of call.

    Attributes:
        call: Its name.
        calls: How many were timed.
        abstained: How many of them the router answered with no expert.
        median_ms: Milliseconds.
        p95_ms: The 95th percentile, in milliseconds.
        calls_per_s: Over the whole time.
    """

    call: str
    calls: int
    abstained: int
    median_ms: float
    p95_ms: float
    calls_per_s: float


def time_calls(
    client: Molora, asked: Callable[[], Sequence[Ask]], callers: int, progress: Progress
) -> list[Timing]:
    """Every kind of call, one after the other, and Predict from several callers at once.

    Args:
        client: Of two services that are ready.
        asked: Prompt and screen (a PNG or JPEG file's bytes) of each call of one kind; at least
            one. It is called for each kind, so that a screen that the executor has kept from
            another is not among them.
        callers: At once, in the last row.
        progress: Called with (calls done, calls in all).

    Raises:
        MoloraError: A call failed, other than by abstention.
    """
    for ask in asked()[:WARM_UP_CALLS]:
        _answered(partial(client.predict, *ask))
    first = [partial(client.route, *ask) for ask in asked()]
    clock = _Clock(progress, calls=4 * len(first))
    found = [clock.sequential("Route", first)]
    held: list[_Call] = []
    for prompt, screen in asked():
        try:
            routed = client.route(prompt, screen)
        except MoloraError as error:
            _check_abstained(error)
        else:
            held.append(partial(client.generate, prompt, routed.context, gates=routed.gates))
    if held:
        found.append(clock.sequential("Generate, screen held", held))
    alone, beside = ([partial(client.predict, *ask) for ask in asked()] for _ in range(2))
    found.append(clock.sequential("Predict", alone))
    found.append(clock.concurrent(f"Predict, {callers} callers", beside, callers))
    return found


class _Clock:
    """Times calls and says how many are done."""

    def __init__(self, progress: Progress, calls: int) -> None:
        self._calls = calls
        self._progress = progress
        self._done = 0

    def sequential(self, name: str, calls: Sequence[_Call]) -> Timing:
        """One by one."""
        begun = time.perf_counter()
        return _timing(name, [self._timed(call) for call in calls], begun)

    def concurrent(self, name: str, calls: Sequence[_Call], callers: int) -> Timing:
        """As several callers send them."""
        begun = time.perf_counter()
        with ThreadPoolExecutor(callers) as pool:
            return _timing(name, list(pool.map(self._timed, calls)), begun)

    def _timed(self, call: _Call) -> tuple[float, bool]:
        begun = time.perf_counter()
        answered = _answered(call)
        took_ms = (time.perf_counter() - begun) * 1000
        self._done += 1
        self._progress(self._done, self._calls)
        return took_ms, answered


def _answered(call: _Call) -> bool:
    """Whether an expert answered; False where the router abstained."""
    try:
        call()
    except MoloraError as error:
        _check_abstained(error)
        return False
    return True


def _check_abstained(error: MoloraError) -> None:
    if error.reason != _ABSTAINED:
        raise error


def _timing(name: str, timed: Sequence[tuple[float, bool]], begun: float) -> Timing:
    total_s = time.perf_counter() - begun
    ordered = sorted(took_ms for took_ms, _ in timed)
    return Timing(
        call=name,
        calls=len(ordered),
        abstained=sum(not answered for _, answered in timed),
        median_ms=statistics.median(ordered),
        p95_ms=ordered[int(0.95 * (len(ordered) - 1))],
        calls_per_s=len(ordered) / total_s,
    )
