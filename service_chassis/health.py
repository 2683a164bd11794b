"""grpc.health.v1: whether this server's services are ready.

Knows one switch for all services of the server; knows nothing of why it is on or off.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service_chassis.errors import NotFound

SERVICE_NAME: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """The readiness switch, and its servicer. Off until the service turns it on.

    It replaces the library's servicer, whose Watch forgets the other watchers of a service when
    one of them leaves, and never ends, so that a drain would wait for it.

    Args:
        services: Full names of the services of this server.
    """

    def __init__(self, services: Sequence[str]) -> None:
        self._services = frozenset(("", *services))
        self._serving = False
        self._draining = False
        self._changed = asyncio.Event()

    @property
    def serving(self) -> bool:
        """Whether the services are ready now."""
        return self._serving

    def set_serving(self, serving: bool) -> None:
        """Turn readiness on or off. Call it on the event loop; a draining server stays off."""
        self._serving = serving and not self._draining
        self._notify()

    def drain(self) -> None:
        """Turn readiness off for good and end every Watch."""
        self._draining = True
        self.set_serving(False)

    async def Check(  # noqa: N802 (the name is the contract's)
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> health_pb2.HealthCheckResponse:
        """Answer once.

        Raises:
            NotFound: This server has no such service.
        """
        if request.service not in self._services:
            raise NotFound(
                "UNKNOWN_SERVICE", "This server has no such service; reflection lists what it has."
            )
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def Watch(  # noqa: N802 (the name is the contract's)
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Answer now and at each change, until the caller leaves or the server drains."""
        last = None
        while True:
            changed, draining = self._changed, self._draining
            status = self._status(request.service)
            if status != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status)
            if draining:
                return
            await changed.wait()

    def _status(self, service: str) -> int:
        statuses = health_pb2.HealthCheckResponse
        if service not in self._services:
            return int(statuses.SERVICE_UNKNOWN)
        return int(statuses.SERVING if self._serving else statuses.NOT_SERVING)

    def _notify(self) -> None:
        # Each event is set once: a watcher that was busy sending cannot miss it.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
