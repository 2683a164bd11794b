"""The life of the bridge: bind, say where, serve, drain. Knows uvicorn; knows no path."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl

import uvicorn

from clients.web.app import make_app
from clients.web.guard import log
from clients.web.settings import WebSettings

DRAIN_GRACE_S = 30
# Each may hold a body of the largest size, its text and its bytes.
MAX_CONNECTIONS = 64


class PortNotAvailable(OSError):
    """The address cannot be had; the text says which and what to do."""


def run(settings: WebSettings) -> None:
    """Serves until SIGTERM or SIGINT, then lets running requests end. Call it on the main thread.

    Prints `web listening on <url>` on stdout once the port is bound.

    Args:
        settings: Checked settings.

    Raises:
        PortNotAvailable: Before anything was served.
    """
    with bind(settings) as bound:
        _keep_foreign_text_out_of_the_log()
        # uvicorn raises the signal again when it is done: a drain is a good end, not a kill.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        print(f"web listening on {url(settings, bound)}", flush=True)
        asyncio.run(make_server(settings).serve(sockets=[bound]))


def bind(settings: WebSettings) -> socket.socket:
    """A listening socket on the address that the settings name.

    Raises:
        PortNotAvailable: The port is taken or not allowed.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        raise PortNotAvailable(
            f"cannot listen on {settings.host}:{settings.port}: the port is in use or not "
            "allowed; free it, or choose another (--port 0: any free one)"
        ) from error


def url(settings: WebSettings, bound: socket.socket) -> str:
    """Where a browser finds the page."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    scheme = "https" if settings.tls_cert else "http"
    return f"{scheme}://{host}:{bound.getsockname()[1]}"


def make_server(settings: WebSettings) -> uvicorn.Server:
    """A server that is not bound yet."""
    client_ca = settings.tls_client_ca
    return uvicorn.Server(
        uvicorn.Config(
            make_app(settings),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            http="h11",
            ws="none",
            lifespan="on",
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=DRAIN_GRACE_S,
            ssl_certfile=settings.tls_cert,
            ssl_keyfile=settings.tls_key,
            ssl_ca_certs=str(client_ca) if client_ca else None,
            ssl_cert_reqs=ssl.CERT_REQUIRED if client_ca else ssl.CERT_NONE,
        )
    )


class _ForeignHandler(logging.Handler):
    """Reports that a library complained, and where, without its text."""

    def emit(self, record: logging.LogRecord) -> None:
        place = f"{record.module}:{record.lineno}"
        log("library record", level=record.levelname.lower(), logger=record.name, where=place)


def _keep_foreign_text_out_of_the_log() -> None:
    root = logging.getLogger()
    root.handlers = [_ForeignHandler()]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
