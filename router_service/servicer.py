"""The RouterService: each RPC as the sentence it is.

Knows the order of the steps; each step is somewhere below.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import structlog

from molora.v1 import router_pb2, router_pb2_grpc, types_pb2
from router_service import wire
from router_service.batching import BatchedHead
from router_service.core import Abstention, Decision
from router_service.errors import FailedPrecondition
from router_service.executor_client import ExecutorClient
from router_service.handshake import Handshake
from router_service.ledger import Entry, Ledger
from router_service.manifest import Manifest
from router_service.policy import Policy
from service_chassis.auth import CALLER

# Generic in the type stubs only.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(frozen=True)
class Router:
    """The parts that answer, and what they state about themselves.

    Attributes:
        manifest: The bundle's.
        version: The bundle's digest.
        executor_address: As answers name it.
        software_version: Of this package.
    """

    manifest: Manifest
    version: str
    head: BatchedHead
    policy: Policy
    handshake: Handshake
    executor: ExecutorClient
    ledger: Ledger
    executor_address: str
    software_version: str


@dataclass(frozen=True)
class Routed:
    """A decision, where its screen is held (empty: nowhere), and what it took."""

    decision: types_pb2.Decision
    context_id: str
    timings: router_pb2.RouteTimings


class RouterServicer(router_pb2_grpc.RouterServiceServicer):
    """Answers Route, Predict and GetRouterInfo."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def Route(  # noqa: N802 (the name is the contract's)
        self, request: router_pb2.RouteRequest, context: Context
    ) -> router_pb2.RouteResponse:
        """Decide; the executor keeps the screen for the Generate that follows."""
        routed = await self._route("Route", request, context)
        return router_pb2.RouteResponse(
            decision=routed.decision,
            context_id=routed.context_id,
            executor=self._router.executor_address,
            timings=routed.timings,
        )

    async def Predict(  # noqa: N802 (the name is the contract's)
        self, request: router_pb2.PredictRequest, context: Context
    ) -> AsyncIterator[router_pb2.PredictResponse]:
        """Decide, generate under the decision's gates, and relay what comes."""
        router = self._router
        routed = await self._route("Predict", request, context)
        yield router_pb2.PredictResponse(
            decision=routed.decision,
            context_id=routed.context_id,
            executor=router.executor_address,
            route_timings=routed.timings,
        )
        generate = wire.write_generate(request, routed.decision, routed.context_id, _request_id())
        events = router.executor.generate(generate, context.time_remaining())
        with router.handshake.watching():
            async with aclosing(events):
                async for event in events:
                    yield wire.write_event(event)

    async def GetRouterInfo(  # noqa: N802 (the name is the contract's)
        self, request: router_pb2.GetRouterInfoRequest, context: Context
    ) -> router_pb2.GetRouterInfoResponse:
        """State the bundle and the policy in force, serving or not."""
        router, problem = self._router, self._router.handshake.problem
        info = router.handshake.require() if problem is None else None
        reply = wire.write_info(router.manifest, router.policy.config, info)
        reply.router_version = router.version
        reply.not_serving_reason = problem.reason if problem else ""
        reply.executor = router.executor_address
        reply.version = router.software_version
        return reply

    async def _route(self, method: str, request: wire.RoutingRequest, context: Context) -> Routed:
        with self._router.ledger.entry(method, _request_id(), CALLER.get()) as entry:
            return await self._decide(entry, request, context)

    async def _decide(self, entry: Entry, request: wire.RoutingRequest, context: Context) -> Routed:
        router, started = self._router, time.perf_counter()
        timings = router_pb2.RouteTimings()
        info = router.handshake.require()
        wire.check_question(request)
        ask = router.policy.check(wire.read_hint(request), wire.read_options(request))
        decision, context_id = router.policy.without_features(ask), ""
        if decision is None:
            with router.handshake.watching():
                features = await router.executor.features(
                    request.prompt, request.screen, entry.request_id, context.time_remaining()
                )
            await router.handshake.confirm(features)
            info, context_id = router.handshake.require(), features.context_id
            timings.features_ms = _ms_since(started)
            decision = router.policy.decide(ask, await router.head.judge(features))
            timings.head_ms = _ms_since(started) - timings.features_ms
        timings.total_ms = _ms_since(started)
        router.ledger.decided(entry, ask, decision, info)
        _refuse_unknown(decision)
        return Routed(
            wire.write_decision(decision, info.expert_set, router.version), context_id, timings
        )


def _refuse_unknown(decision: Decision) -> None:
    if decision.abstention is Abstention.ERROR:
        raise FailedPrecondition(
            "ABSTAINED",
            "No expert knows this screen; send one that an expert was trained on, or name an "
            "expert by expert_override.",
            distance=decision.distance,
        )


def _ms_since(start: float) -> float:
    return (time.perf_counter() - start) * 1000


def _request_id() -> str:
    """The id that the interceptor gave this call."""
    return str(structlog.contextvars.get_contextvars().get("request_id", ""))
