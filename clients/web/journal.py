"""The last decisions, for the live view: gates, reason, how sure, how long; never any content.

Knows no request.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from molora_client import DecisionReason, Routed

KEPT = 256


@dataclass(frozen=True)
class Entry:
    """One decision.

    Attributes:
        number: Counts the bridge's decisions, from 1.
        at_s: When, in seconds since the epoch.
        gates: Expert name to weight.
        reason: Why they are what they are.
        confidence: The largest probability.
        entropy: Of the probabilities, in nats.
        ms: What the decision took.
    """

    number: int
    at_s: float
    gates: dict[str, float]
    reason: str
    confidence: float
    entropy: float
    ms: float


class Journal:
    """Keeps the last decisions in memory, and forgets them with the process."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=KEPT)
        self._count = 0

    def note(self, routed: Routed) -> None:
        """Keeps one decision."""
        self._count += 1
        self._entries.append(
            Entry(
                number=self._count,
                at_s=time.time(),
                gates=dict(routed.gates),
                reason=routed.reason.value,
                confidence=routed.confidence,
                entropy=routed.entropy,
                ms=routed.timings.total_ms,
            )
        )

    def as_json(self) -> dict[str, Any]:
        """Count, marginals and the kept decisions, newest first."""
        return {
            "count": self._count,
            "kept": len(self._entries),
            "marginals": marginals(self._entries),
            "decisions": [asdict(entry) for entry in reversed(self._entries)],
        }


def marginals(entries: Iterable[Entry]) -> dict[str, float]:
    """Mean gate of each expert over what the router gave; overrides are somebody else's choice.

    Returns:
        Expert name to mean weight, sum 1; empty if the router gave no gates.
    """
    override = DecisionReason.MANUAL_OVERRIDE.value
    decided = [entry.gates for entry in entries if entry.gates and entry.reason != override]
    names = sorted({name for gates in decided for name in gates})
    return {name: sum(gates.get(name, 0.0) for gates in decided) / len(decided) for name in names}
