"""The life of a server process: bind, listen, get ready, drain, exit.

Knows gRPC, signals and exit codes; knows no service.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service_chassis import health as health_service
from service_chassis.auth import AuthTable, check_auth_table, watch_tokens
from service_chassis.exposition import Exposition
from service_chassis.health import Health
from service_chassis.interceptor import ServerInterceptor
from service_chassis.logging import configure_logging
from service_chassis.metrics import ServerMetrics
from service_chassis.settings import ServerSettings
from service_chassis.tls import Tls, server_credentials, watch_tls
from service_chassis.watched import Watched

_log = structlog.get_logger()

# Above the soft limit grpc refuses at random up to the hard one; equal limits make it a rule.
_MAX_METADATA_BYTES = 8192


class StartupError(Exception):
    """A service cannot get ready and should exit.

    Args:
        message: For the operator: what is wrong and what to do.
        exit_code: 3 where a model or an expert cannot be loaded, else 1.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


async def serve(
    *,
    settings: ServerSettings,
    name: str,
    register: Callable[[grpc.aio.Server], None],
    services: Sequence[str],
    auth_table: AuthTable,
    metrics: ServerMetrics,
    ready: Callable[[Health], Awaitable[None]],
    on_drain: Callable[[], Awaitable[None]] | None = None,
) -> int:
    """Run a server until SIGTERM or SIGINT. Call it on the main thread.

    Prints `<name> listening on <host>:<port>` and `<name> metrics on <host>:<port>` on stdout
    once both ports are bound. Health says NOT_SERVING until `ready` turns it on.

    Args:
        settings: Checked settings.
        name: Name of the service in logs and on stdout.
        register: Adds the servicers to the server.
        services: Full names of the services that `register` adds.
        auth_table: Role of every method of `services`, no more and no less.
        metrics: The registry that the service's own metrics use too.
        ready: Runs beside the server from the first moment; turns health on once calls can be
            answered. It may go on (to watch a peer, say) and is cancelled on drain.
        on_drain: Awaited once when a drain begins, before the listener closes.

    Returns:
        The exit code: 0 after a drain, that of a StartupError, 1 for a port that cannot be had or
        a `ready` that broke.

    Raises:
        ValueError: The auth table does not match the services.
    """
    check_auth_table(services, auth_table)
    configure_logging(settings.log_level, name)
    _forbid_core_dumps()
    health = Health(services)
    server = build_server(settings, register, services, auth_table, metrics, health)
    tls = watch_tls(settings.tls_files) if settings.tls_files else None
    exposition: Exposition | None = None
    try:
        async with _signals() as (drain, hurry):
            try:
                address = _bind(server, settings, tls)
                exposition = _expose(metrics, settings, tls)
            except OSError as error:
                return _refuse(name, f"{error}; free it, or choose another port (0: any free one)")
            await server.start()
            print(f"{name} listening on {address}", flush=True)
            print(f"{name} metrics on {exposition.address}", flush=True)
            exit_code = await _until_drain(name, ready, health, drain)
            await _drain(server, health, settings.drain_grace_s, hurry, on_drain)
        return exit_code
    finally:
        if exposition is not None:
            exposition.close()
        await server.stop(None)


def build_server(
    settings: ServerSettings,
    register: Callable[[grpc.aio.Server], None],
    services: Sequence[str],
    auth_table: AuthTable,
    metrics: ServerMetrics,
    health: Health,
) -> grpc.aio.Server:
    """A server with everything registered, not yet bound. Arguments as in `serve`."""
    tokens = watch_tokens(settings.tokens_file) if settings.tokens_file else None
    server = grpc.aio.server(
        interceptors=[ServerInterceptor(auth_table, tokens, metrics, settings.call_max_s)],
        options=[
            # With port sharing two servers would split the calls in silence.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", _MAX_METADATA_BYTES),
            # A peer that vanished without a word is noticed within 80 s.
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ],
    )
    register(server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = (*services, health_service.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    return server


def _bind(server: grpc.aio.Server, settings: ServerSettings, tls: Watched[Tls] | None) -> str:
    """Bind the port that the settings name; returns the address with the port that was taken."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"{host}:{settings.port}"
    try:
        if tls is None:
            return f"{host}:{server.add_insecure_port(address)}"
        return f"{host}:{server.add_secure_port(address, server_credentials(tls))}"
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: the port is in use or not allowed") from error


def _expose(
    metrics: ServerMetrics, settings: ServerSettings, tls: Watched[Tls] | None
) -> Exposition:
    tokens = watch_tokens(settings.tokens_file) if settings.tokens_file else None
    host, port = settings.metrics_host, settings.metrics_port
    return Exposition(metrics.registry, host, port, tls, tokens)


def _forbid_core_dumps() -> None:
    """A dump would hold screens and prompts, on a disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


@contextlib.asynccontextmanager
async def _signals() -> AsyncIterator[tuple[asyncio.Event, asyncio.Event]]:
    """Events for the first and for the second SIGTERM or SIGINT."""
    first, second = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    caught = (signal.SIGTERM, signal.SIGINT)

    def on_signal() -> None:
        (second if first.is_set() else first).set()

    for number in caught:
        loop.add_signal_handler(number, on_signal)
    try:
        yield first, second
    finally:
        for number in caught:
            loop.remove_signal_handler(number)


async def _until_drain(
    name: str,
    ready: Callable[[Health], Awaitable[None]],
    health: Health,
    drain: asyncio.Event,
) -> int:
    """Run `ready` beside the server until the drain's signal, or until it breaks."""
    preparing = asyncio.ensure_future(ready(health))
    signalled = asyncio.ensure_future(drain.wait())
    running: set[asyncio.Future[Any]] = {preparing, signalled}
    try:
        while not signalled.done():
            _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            if preparing.done():
                preparing.result()
    except StartupError as error:
        return _refuse(name, str(error), error.exit_code)
    except Exception as error:
        _log.critical("the service broke", exc_info=error)
        return 1
    finally:
        for task in (preparing, signalled):
            task.cancel()
        await asyncio.gather(preparing, signalled, return_exceptions=True)
    return 0


async def _drain(
    server: grpc.aio.Server,
    health: Health,
    grace_s: float,
    hurry: asyncio.Event,
    on_drain: Callable[[], Awaitable[None]] | None,
) -> None:
    """Say NOT_SERVING, close the listener, let running calls end within the grace."""
    _log.info("draining", grace_s=grace_s)
    health.drain()
    if on_drain is not None:
        await on_drain()
    stopping = asyncio.ensure_future(server.stop(grace_s))
    hurried = asyncio.ensure_future(hurry.wait())
    await asyncio.wait({stopping, hurried}, return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        await server.stop(None)
    hurried.cancel()
    await asyncio.gather(stopping, hurried, return_exceptions=True)


def _refuse(name: str, message: str, exit_code: int = 1) -> int:
    print(f"{name}: {message}", file=sys.stderr, flush=True)
    return exit_code
