"""Prometheus metrics of a gRPC server, under the names that operators know.

Knows methods and codes; knows no metric of the domain (services add theirs to `registry`).
"""

from __future__ import annotations

import threading
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    start_http_server,
)

# Metrics have no transport security of their own, so they never leave this machine.
_HOST = "127.0.0.1"
_METHOD_LABELS = ("grpc_service", "grpc_method")
_SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class ServerMetrics:
    """One server's registry, its request metrics and their HTTP exposition.

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
        self._http: tuple[WSGIServer, threading.Thread] | None = None

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

    def listen(self, port: int) -> str:
        """Expose the registry over HTTP on loopback until `close`.

        Args:
            port: TCP port; 0 takes any free one.

        Returns:
            The address that was taken, `host:port`.

        Raises:
            OSError: The port is in use; the message names the address.
        """
        try:
            self._http = start_http_server(port, addr=_HOST, registry=self.registry)
        except OSError as error:
            problem = "the port is in use or not allowed"
            raise OSError(f"cannot show metrics on {_HOST}:{port}: {problem}") from error
        return f"{_HOST}:{self._http[0].server_port}"

    def close(self) -> None:
        """Stop the HTTP exposition, if it runs."""
        if self._http is None:
            return
        server, thread = self._http
        self._http = None
        server.shutdown()
        server.server_close()
        thread.join()
