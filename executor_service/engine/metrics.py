"""What the engine does, as Prometheus metrics. Labels are loaded experts and words of this file.

Knows requests by their times, gates and hits; knows nothing of what they ask or answer.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from executor_service.core import GateVector, RoutingChoice

_WAIT_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)


class Cache(enum.Enum):
    """What may be there already."""

    CONTEXT = "context"
    """A screen, by the `context_id` of a request."""
    SCREEN = "screen"
    """A screen, by the bytes that came to be extracted once more."""
    VISION = "vision"
    """The tower's output for a held screen; no hit where an active expert adapts the tower."""
    PREFIX = "prefix"
    """Keys and values of a system turn."""


class Override(enum.Enum):
    """How a caller steps around a router's gates."""

    EXPERT = "expert"
    BASE_ONLY = "base_only"
    MASK = "mask"


class EngineMetrics:
    """The engine's own metrics; made before any of its threads runs a request.

    Args:
        registry: The server's.
        running: How many requests have started and are not over.
        waiting: How many are queued.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        running: Callable[[], int],
        waiting: Callable[[], int],
    ) -> None:
        def seconds(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"molora_{name}_seconds", text, buckets=buckets, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"molora_{name}_total", text, labels, registry=registry)

        self._first = seconds("time_to_first_token", "From arrival to token one.", _WAIT_BUCKETS)
        self._next = seconds(
            "inter_token_latency", "Between two tokens of an answer.", _TOKEN_BUCKETS
        )
        self._queue = seconds("request_queue_time", "Wait before the first part.", _WAIT_BUCKETS)
        for name, text, function in (
            ("running", "Requests that have started and are not over.", running),
            ("waiting", "Requests in the queue.", waiting),
        ):
            gauge = Gauge(f"molora_num_requests_{name}", text, registry=registry)
            gauge.set_function(function)
        self._weights = counter("gate_weight", "Sum of the gates applied.", "expert")
        self._requests = counter("expert_requests", "Requests with a gate above 0.", "expert")
        self._experts: frozenset[str] = frozenset()
        # Made at once: a rate over a series that begins with its first event misses that event.
        overrides = counter("overrides", "Requests around the router's gates, by how.", "kind")
        self._overrides = {kind: overrides.labels(kind.value) for kind in Override}
        queries = counter("cache_queries", "Lookups, by cache.", "cache")
        self._queries = {cache: queries.labels(cache.value) for cache in Cache}
        hits = counter("cache_hits", "Lookups that found something, by cache.", "cache")
        self._hits = {cache: hits.labels(cache.value) for cache in Cache}

    def loaded(self, experts: Sequence[str]) -> None:
        """State which experts there are; the series of others end. On the event loop."""
        names = frozenset(experts)
        for metric in (self._weights, self._requests):
            for gone in self._experts - names:
                metric.remove(gone)
            for name in names:
                metric.labels(name)
        self._experts = names

    def routed(self, choice: RoutingChoice, experts: Sequence[str], gates: GateVector) -> None:
        """Count a request's gates once it is admitted. On the event loop.

        Args:
            choice: What was asked for.
            experts: Loaded ones, in the order of `gates`.
            gates: What is applied; gates per layer are not counted.
        """
        for name, weight in zip(experts, gates.weights, strict=True):
            # A reload may have taken an expert away that this request still holds.
            if weight > 0 and name in self._experts:
                self._weights.labels(name).inc(weight)
                self._requests.labels(name).inc()
        overrides = {
            Override.EXPERT: choice.expert is not None,
            Override.BASE_ONLY: choice.base_only,
            Override.MASK: bool(choice.masked),
        }
        for kind, used in overrides.items():
            self._overrides[kind].inc(used)

    def looked_up(self, cache: Cache, *, hit: bool) -> None:
        """Count a lookup; from any thread."""
        self._queries[cache].inc()
        self._hits[cache].inc(hit)

    def queued(self, wait_ms: float) -> None:
        """Count how long a request waited; from any thread."""
        self._queue.observe(wait_ms / 1000)

    def first_token(self, wait_ms: float) -> None:
        """Count the time from a request's arrival to its first token; from any thread."""
        self._first.observe(wait_ms / 1000)

    def next_token(self, wait_ms: float) -> None:
        """Count the time between two tokens; from any thread."""
        self._next.observe(wait_ms / 1000)
