"""What every request passes: host, origin, headers of the answer, one log line, no traceback.

Knows no path's meaning, and logs nothing that a caller wrote.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clients.web import shapes
from clients.web.errors import BridgeError, as_failure

_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_METHODS = ("GET", "HEAD", "POST", "OPTIONS")
_MAX_FRAMES = 12

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Guard:
    """An ASGI application around the bridge's own.

    Args:
        app: What answers.
        paths: The paths that may be named in the log.
        allowed_origins: Pages of other origins that may call.
        local_names_only: Whether the bridge answers only under names of this machine and of the
            allowed origins. A page elsewhere can give its own name this machine's address, and is
            then of the same origin for a browser.
    """

    def __init__(
        self,
        app: ASGIApp,
        paths: Collection[str],
        allowed_origins: Collection[str],
        local_names_only: bool,
    ) -> None:
        self._app = app
        self._paths = frozenset(paths)
        self._origins = frozenset(allowed_origins)
        hosts = {urlsplit(origin).hostname for origin in allowed_origins}
        self._hosts = {*_LOCAL_NAMES, *hosts} if local_names_only else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; raises nothing."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = _Sent(send)
        started = time.perf_counter()
        try:
            self._refuse_strangers(Headers(scope=scope))
            await self._app(scope, receive, sent)
        except BridgeError as error:
            await self._answer(error, scope, receive, sent)
        except ClientDisconnect:
            # Nobody reads what was answered on the way here.
            sent.status = 499
            scope["molora.reason"] = "CALLER_LEFT"
        except Exception as error:
            log("crash", **where(error))
            if not sent.status:
                await self._answer(error, scope, receive, sent)
        finally:
            ms = (time.perf_counter() - started) * 1000
            self._log_request(scope, sent, ms)

    def _refuse_strangers(self, headers: Headers) -> None:
        host = headers.get("host", "")
        if self._hosts is not None and _host_name(host) not in self._hosts:
            raise BridgeError("HOST_NOT_ALLOWED")
        origin = headers.get("origin")
        # Browsers name the origin wherever a page of another one could change or read something.
        if origin is not None and origin not in self._origins and not _same(origin, host):
            raise BridgeError("ORIGIN_NOT_ALLOWED")

    async def _answer(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        failure = as_failure(error)
        scope["molora.reason"] = failure.reason
        body = shapes.unanswered(scope["path"], failure)
        await JSONResponse(body, failure.status)(scope, receive, send)

    def _log_request(self, scope: Scope, sent: _Sent, ms: float) -> None:
        facts = {
            "method": scope["method"] if scope["method"] in _METHODS else "other",
            "path": scope["path"] if scope["path"] in self._paths else "other",
            "status": sent.status,
            "ms": round(ms, 1),
            "reason": scope.get("molora.reason"),
            "request_id": scope.get("molora.request_id"),
        }
        log("request", **{name: value for name, value in facts.items() if value is not None})


class _Sent:
    """Passes messages on, adds the headers of every answer, and remembers the status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            # Answers hold what was read off a screen; the page's own files are checked each time.
            headers.setdefault("cache-control", "no-store")
        await self._send(message)


def log(event: str, **facts: Any) -> None:
    """One JSON line on standard error."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = {"service": "web", "event": event, **facts, "timestamp": at}
    print(json.dumps(line), file=sys.stderr, flush=True)


def where(error: BaseException) -> dict[str, Any]:
    """An exception without its message, which may quote what a caller sent."""
    frames = list(traceback.walk_tb(error.__traceback__))[-_MAX_FRAMES:]
    places = [f"{frame.f_globals.get('__name__', '?')}:{line}" for frame, line in frames]
    return {"type": type(error).__name__, "where": places}


def _host_name(host: str) -> str | None:
    """The name in a Host header; None if it is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _same(origin: str, host: str) -> bool:
    """Whether a page of this origin came from this bridge. TLS may have ended before it."""
    scheme, separator, rest = origin.partition("://")
    return scheme in ("http", "https") and bool(separator) and rest == host.lower()
