"""What happens around every call: request id, authorisation, errors, one log line, metrics.

Knows methods, roles and codes; knows no message of the domain, except that a request may have a
`request_id` field.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
import structlog

from service_chassis import status
from service_chassis.auth import CALLER, CHASSIS_AUTH, AuthTable, Role, TokenTable, caller, require
from service_chassis.errors import (
    DeadlineExceeded,
    Internal,
    PermissionDenied,
    ServiceError,
    Unimplemented,
)
from service_chassis.logging import describe_exception
from service_chassis.metrics import ServerMetrics
from service_chassis.watched import Watched

REQUEST_ID_KEY = "x-request-id"

_MAX_REQUEST_ID_CHARS = 128
_log = structlog.get_logger()

# Generic in the type stubs only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Metadata = Mapping[str, Sequence[str]]

_FACTORIES: dict[tuple[bool, bool], Callable[..., Any]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


@dataclass
class _Call:
    """One call, from its headers to its status."""

    path: str
    service: str
    method: str
    metadata: Metadata
    request_id: str = ""
    started_s: float = field(default_factory=time.monotonic)
    code: grpc.StatusCode = grpc.StatusCode.INTERNAL
    checked: Sequence[str] = ()
    expired: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


class ServerInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every method of a server. Streaming methods must be async generators.

    Args:
        auth_table: Full method name to role, for every method of the server.
        tokens: Accepted tokens; None lets every caller do everything.
        metrics: Where calls are counted.
        call_max_s: Longest that a call may take; a caller may set no deadline, or read nothing.
    """

    def __init__(
        self,
        auth_table: AuthTable,
        tokens: Watched[TokenTable] | None,
        metrics: ServerMetrics,
        call_max_s: float,
    ) -> None:
        self._auth_table = {**auth_table, **CHASSIS_AUTH}
        self._tokens = tokens
        self._metrics = metrics
        self._call_max_s = call_max_s

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Decide on the headers alone, before a byte of the request is parsed."""
        call = self._open(handler_call_details)
        handler = await continuation(handler_call_details)
        try:
            return self._wrapped(call, self._admit(call, handler))
        except ServiceError as refusal:
            return self._refusing(call, refusal)

    def _open(self, details: grpc.HandlerCallDetails) -> _Call:
        known = details.method in self._auth_table
        # An unknown name is the caller's text, and would make one more time series each.
        _, service, method = details.method.split("/") if known else ("", "unknown", "unknown")
        metadata: dict[str, list[str]] = {}
        for key, value in details.invocation_metadata or ():
            if isinstance(value, str):
                metadata.setdefault(key, []).append(value)
        return _Call(details.method, service, method, metadata)

    def _admit(self, call: _Call, handler: Handler | None) -> Handler:
        """The method's handler; raises what the caller gets instead, if anything."""
        if handler is None:
            raise Unimplemented(
                "UNKNOWN_METHOD", "This server has no such method; reflection lists what it has."
            )
        needed = self._auth_table.get(call.path)
        if needed is None:
            raise PermissionDenied(
                "METHOD_NOT_LISTED", "No role may call this method; add it to the auth table."
            )
        if self._tokens is not None and needed is not Role.PUBLIC:
            offered = call.metadata.get("authorization", [])
            granted = self._tokens.current().roles(offered)
            call.checked = offered
            require(needed, granted)
        return handler

    def _refusing(self, call: _Call, refusal: ServiceError) -> Handler:
        async def refuse(_: Any, context: Context) -> None:
            async def raise_it() -> None:
                raise refusal

            await self._run(call, None, context, raise_it)

        # Streaming both ways: the request's bytes are not even read.
        return grpc.stream_stream_rpc_method_handler(refuse)

    def _wrapped(self, call: _Call, handler: Handler) -> Handler:
        """The same method with everything around it; (de)serialising is inside, so it counts."""
        # The stubs type it for synchronous servers only.
        behaviour: Any = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )
        serialize = handler.response_serializer or _as_it_is
        streams = (handler.request_streaming, handler.response_streaming)

        async def serve(raw: Any, context: Context) -> Any:
            request = raw if handler.request_streaming else _parsed(handler, raw)

            async def answer() -> Any:
                if isinstance(request, ServiceError):
                    raise request
                if not handler.response_streaming:
                    return serialize(await behaviour(request, context))
                await _send(behaviour(request, context), serialize, context)
                return None

            return await self._run(call, request, context, answer)

        deserialize = handler.request_deserializer if handler.request_streaming else None
        wrapped: Handler = _FACTORIES[streams](serve, request_deserializer=deserialize)
        return wrapped

    async def _run(
        self,
        call: _Call,
        request: Any,
        context: Context,
        answer: Callable[[], Awaitable[Any]],
    ) -> Any:
        """Run one call to its single status; leave one log line and one count behind."""
        call.request_id = _request_id(call.metadata, request)
        certificates = context.auth_context().get("x509_pem_cert", ())
        call.facts["caller"] = caller(call.checked, list(certificates))
        CALLER.set(call.facts["caller"])
        self._metrics.call_started(call.service, call.method)
        limit = self._limit(call)
        with structlog.contextvars.bound_contextvars(request_id=call.request_id):
            try:
                await context.send_initial_metadata(((REQUEST_ID_KEY, call.request_id),))
                response = await answer()
                call.code = grpc.StatusCode.OK
                return response
            except asyncio.CancelledError:
                if call.expired:
                    await _fail(
                        call,
                        context,
                        DeadlineExceeded(
                            "CALL_TOO_LONG",
                            "The call took longer than this server allows; ask for less.",
                        ),
                    )
                late = context.time_remaining() is not None and context.time_remaining() <= 0
                call.code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
                raise
            except ServiceError as error:
                await _fail(call, context, error)
            except Exception as error:
                call.facts["exception"] = describe_exception(error)
                await _fail(
                    call,
                    context,
                    Internal(
                        "INTERNAL",
                        "The server failed; its log has this request's id. Report it.",
                    ),
                )
            finally:
                limit.cancel()
                self._close(call)

    def _limit(self, call: _Call) -> asyncio.TimerHandle:
        """Ends the call, which this task runs, when it has taken too long."""
        task = asyncio.current_task()
        assert task is not None

        def expire() -> None:
            call.expired = True
            task.cancel()

        # Health may be watched, and reflection be asked, for as long as one likes.
        longest_s = math.inf if call.path in CHASSIS_AUTH else self._call_max_s
        return asyncio.get_running_loop().call_later(longest_s, expire)

    def _close(self, call: _Call) -> None:
        seconds = time.monotonic() - call.started_s
        self._metrics.call_ended(call.service, call.method, call.code.name, seconds)
        write = _log.info
        if call.code is grpc.StatusCode.INTERNAL:
            write = _log.error
        elif call.path in CHASSIS_AUTH:
            # Probes come every few seconds.
            write = _log.debug
        write(
            "request",
            method=f"{call.service}/{call.method}",
            code=call.code.name,
            ms=round(seconds * 1000, 3),
            **call.facts,
        )


async def _fail(call: _Call, context: Context, error: ServiceError) -> None:
    call.code = grpc.StatusCode[error.code]
    call.facts["reason"] = error.reason
    await status.abort(context, error)


async def _send(
    responses: AsyncGenerator[Any, None], serialize: Callable[[Any], bytes], context: Context
) -> None:
    try:
        async for response in responses:
            await context.write(serialize(response))
    finally:
        # A cancelled call must free what the generator holds now, not at garbage collection.
        await responses.aclose()


def _parsed(handler: Handler, raw: bytes) -> Any:
    """The request, or the error that says it cannot be parsed."""
    deserialize = handler.request_deserializer or _as_it_is
    try:
        return deserialize(raw)
    except Exception:
        return Internal(
            "UNDECODABLE_REQUEST",
            "The request is not a message of this method; regenerate the client's stubs.",
        )


def _request_id(metadata: Metadata, request: Any) -> str:
    """The caller's id (header first, then the request's field), or a new one."""
    for offered in (*metadata.get(REQUEST_ID_KEY, []), getattr(request, "request_id", "")):
        if 0 < len(offered) <= _MAX_REQUEST_ID_CHARS and all("!" <= c <= "~" for c in offered):
            return offered
    return uuid.uuid4().hex


def _as_it_is(value: Any) -> Any:
    return value
