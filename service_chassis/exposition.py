"""The metrics over HTTP, behind the same TLS and tokens as the calls.

Knows `GET /metrics`, its role and its limits; knows no metric.
"""

from __future__ import annotations

import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from service_chassis.auth import METRICS_AUTH, TokenTable, require
from service_chassis.errors import PermissionDenied, Unauthenticated
from service_chassis.tls import Tls
from service_chassis.watched import Watched

_PATH = "/metrics"
_ROLE = METRICS_AUTH[f"GET {_PATH}"]
# For the handshake, and for each read and write after it.
_PATIENCE_S = 10.0
# Prometheus asks with one; idle ones must not take all threads of the process.
_MAX_CONNECTIONS = 16


class Exposition:
    """Serves a registry until it is closed.

    Args:
        registry: What is shown.
        host: Address to listen on.
        port: TCP port; 0 takes any free one.
        tls: The server's; None for plaintext.
        tokens: Accepted tokens; None shows the metrics to everybody.

    Raises:
        OSError: The port is in use; the message names the address.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        host: str,
        port: int,
        tls: Watched[Tls] | None,
        tokens: Watched[TokenTable] | None,
    ) -> None:
        shown = f"[{host}]" if ":" in host else host
        handler = type("Handler", (_Handler,), {"registry": registry, "tokens": tokens})
        try:
            self._server = _Server(host, port, handler, tls)
        except OSError as error:
            problem = "the port is in use or not allowed"
            raise OSError(f"cannot show metrics on {shown}:{port}: {problem}") from error
        self.address = f"{shown}:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(
        self,
        host: str,
        port: int,
        handler: type[BaseHTTPRequestHandler],
        tls: Watched[Tls] | None,
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._tls = tls
        self._places = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__((host, port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread, or close it where there are too many."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer on the connection's own thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands here: a peer that is slow with it keeps nobody else waiting."""
        request.settimeout(_PATIENCE_S)
        if self._tls is None:
            super().finish_request(request, client_address)
            return
        with self._tls.current().context.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a peer that leaves or cannot shake hands is no event, and has an address."""


class _Handler(BaseHTTPRequestHandler):
    registry: CollectorRegistry
    tokens: Watched[TokenTable] | None
    timeout = _PATIENCE_S
    server_version = "molora"
    sys_version = ""

    def do_GET(self) -> None:
        """The metrics, to whom may see them."""
        if self.path.partition("?")[0] != _PATH:
            self._answer(HTTPStatus.NOT_FOUND, b"see /metrics\n")
            return
        try:
            if self.tokens is not None:
                offered = self.headers.get_all("Authorization", [])
                require(_ROLE, self.tokens.current().roles(offered))
        except Unauthenticated as refusal:
            self._answer(HTTPStatus.UNAUTHORIZED, f"{refusal.message}\n".encode())
        except PermissionDenied as refusal:
            self._answer(HTTPStatus.FORBIDDEN, f"{refusal.message}\n".encode())
        else:
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._answer(HTTPStatus.OK, encode(self.registry), content_type)

    def log_message(self, *_: Any) -> None:
        """Nothing: a line would hold an address and whatever was asked for."""

    def _answer(
        self, status: HTTPStatus, body: bytes, content_type: str = "text/plain; charset=utf-8"
    ) -> None:
        self.send_response(status)
        if status is HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", "Bearer")
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
