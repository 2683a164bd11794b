"""The bridge's paths. Knows HTTP, and which question belongs to which path."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from clients.web import asks, shapes
from clients.web.asks import Ask
from clients.web.bridge import Bridge
from clients.web.errors import BridgeError, as_failure
from clients.web.guard import Guard
from clients.web.settings import WebSettings
from molora_client import AsyncMolora, MoloraError

STATIC = Path(__file__).parent / "static"
# Checked with the server each time, which answers 304: a new version is seen at once.
_REVALIDATE = {"cache-control": "no-cache"}

Result = TypeVar("Result")


def make_app(settings: WebSettings) -> ASGIApp:
    """The whole application; its client lives as long as the server does.

    Args:
        settings: Checked settings.

    Returns:
        An ASGI application that needs its lifespan run.
    """
    routes = make_routes()
    app = Starlette(
        routes=routes,
        lifespan=lambda app: _connected(app, settings),
        middleware=[
            Middleware(
                CORSMiddleware,
                allow_origins=settings.allowed_origins,
                allow_methods=("GET", "POST"),
                allow_headers=("content-type",),
                # A page of the public web asks so before it may call this machine.
                allow_private_network=True,
                expose_headers=("x-request-id",),
            )
        ],
        exception_handlers={
            BridgeError: _failed,
            MoloraError: _failed,
            HTTPException: _not_routed,
            # The guard logs it after it was answered.
            Exception: _failed,
        },
    )
    app.state.max_body_bytes = settings.max_body_bytes
    paths = [route.path for route in routes if isinstance(route, Route)]
    return Guard(app, paths, settings.allowed_origins, settings.is_local)


def make_routes() -> list[BaseRoute]:
    """Every path of the bridge."""
    return [
        Route("/infer_web", _infer_web, methods=["POST"]),
        Route("/", _plain, methods=["POST"]),
        Route("/", _page, methods=["GET"]),
        Route("/health", _health, methods=["GET"]),
        Route("/inspect", _inspect, methods=["POST"]),
        Route("/inspect/server", _facts, methods=["GET"]),
        Route("/inspect/decisions", _decisions, methods=["GET"]),
        Mount("/static", _Static(directory=STATIC)),
    ]


async def _infer_web(request: Request) -> Response:
    answer = await _while_connected(request, _bridge(request).infer(await _ask(request)))
    return _answer(request, shapes.infer_web(answer), answer.prediction.routed.request_id)


async def _plain(request: Request) -> Response:
    answer = await _while_connected(request, _bridge(request).infer(await _ask(request)))
    return _answer(request, shapes.plain(answer), answer.prediction.routed.request_id)


async def _page(request: Request) -> Response:
    return FileResponse(STATIC / "index.html", headers=_REVALIDATE)


async def _health(request: Request) -> Response:
    return JSONResponse(await _bridge(request).health())


async def _facts(request: Request) -> Response:
    return JSONResponse(await _bridge(request).facts())


async def _decisions(request: Request) -> Response:
    return JSONResponse(_bridge(request).journal.as_json())


async def _inspect(request: Request) -> Response:
    """One JSON object a line, as it happens. What fails before the first has its own status."""
    body = await asks.read_body(request, request.app.state.max_body_bytes)
    events = _bridge(request).inspect(asks.read_inspection(body))
    first = await _while_connected(request, anext(events))
    request.scope["molora.request_id"] = first.get("request_id")
    return StreamingResponse(_lines(request, first, events), media_type="application/x-ndjson")


async def _lines(
    request: Request, first: dict[str, Any], events: AsyncGenerator[dict[str, Any], None]
) -> AsyncIterator[bytes]:
    async with contextlib.aclosing(events):
        try:
            yield _line(first)
            async for event in events:
                yield _line(event)
        except MoloraError as error:
            failure = as_failure(error)
            request.scope["molora.reason"] = failure.reason
            yield _line(shapes.error_event(failure))


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode() + b"\n"


class _Static(StaticFiles):
    """The page's own files."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(_REVALIDATE)
        return response


@contextlib.asynccontextmanager
async def _connected(app: Starlette, settings: WebSettings) -> AsyncIterator[None]:
    client = AsyncMolora(
        settings.router,
        settings.executor,
        settings.token,
        settings.upstream_tls,
        settings.timeout_s,
    )
    async with client:
        app.state.bridge = Bridge(client)
        yield


async def _ask(request: Request) -> Ask:
    return asks.read_ask(await asks.read_body(request, request.app.state.max_body_bytes))


def _bridge(request: Request) -> Bridge:
    bridge: Bridge = request.app.state.bridge
    return bridge


async def _while_connected(request: Request, work: Awaitable[Result]) -> Result:
    """Awaits the work, and cancels it when the caller leaves: it would keep a slot for nobody.

    Raises:
        ClientDisconnect: The caller left.
        BridgeError: As the work.
        MoloraError: As the work.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def _answer(request: Request, body: dict[str, Any], request_id: str) -> Response:
    request.scope["molora.request_id"] = request_id
    return JSONResponse(body, headers={"x-request-id": request_id})


async def _failed(request: Request, error: Exception) -> Response:
    failure = as_failure(error)
    request.scope["molora.reason"] = failure.reason
    request.scope["molora.request_id"] = failure.request_id or None
    headers = {}
    if failure.retry_after_s is not None:
        headers["retry-after"] = str(failure.retry_after_s)
    if failure.request_id:
        headers["x-request-id"] = failure.request_id
    body = shapes.unanswered(request.url.path, failure)
    return JSONResponse(body, failure.status, headers)


async def _not_routed(request: Request, error: Exception) -> Response:
    """What the router of paths refuses; its own texts are not from our set."""
    status = error.status_code if isinstance(error, HTTPException) else 404
    reason = "METHOD_NOT_ALLOWED" if status == 405 else "UNKNOWN_PATH"
    return await _failed(request, BridgeError(reason))
