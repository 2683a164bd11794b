"""Prometheus metrics of a gRPC server, under the names that operators know.

Knows methods and codes; knows no metric of the domain (services add theirs to `registry`), and not
how they are shown.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector

_METHOD_LABELS = ("grpc_service", "grpc_method")
_SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class ServerMetrics:
    """One server's registry and its request metrics.

    Attributes:
        registry: Where the service registers its own metrics. Labels must come from closed sets.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._started = Counter(
            "grpc_server_started_total", "Calls begun.", _METHOD_LABELS, registry=self.registry
        )
        self._handled = Counter(
            "grpc_server_handled_total",
            "Calls ended, by status code.",
            (*_METHOD_LABELS, "grpc_code"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "grpc_server_handling_seconds",
            "Time from the start of a call to its status.",
            _METHOD_LABELS,
            buckets=_SECONDS_BUCKETS,
            registry=self.registry,
        )

    def call_started(self, service: str, method: str) -> None:
        """Count a call that begins. Both names must be in the auth table, or be `unknown`."""
        self._started.labels(service, method).inc()

    def call_ended(self, service: str, method: str, code: str, seconds: float) -> None:
        """Count a call that has its status.

        Args:
            service: Full name of the service, or `unknown`.
            method: Name of the method, or `unknown`.
            code: Canonical code, e.g. `NOT_FOUND`.
            seconds: Time since the call began.
        """
        self._handled.labels(service, method, code).inc()
        self._seconds.labels(service, method).observe(seconds)
