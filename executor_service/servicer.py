"""The executor's RPCs: message in, engine, message out.

Knows which engine method answers which RPC; knows no model and no rule of its own.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import grpc

from executor_service import wire
from executor_service.engine.engine import Engine
from molora.v1 import admin_pb2, admin_pb2_grpc, executor_pb2, executor_pb2_grpc
from service_chassis.auth import AuthTable, Role

Context = grpc.aio.ServicerContext[Any, Any]
# The engine, or UNAVAILABLE while it is being made.
EngineSource = Callable[[], Engine]

EXECUTOR = executor_pb2.DESCRIPTOR.services_by_name["ExecutorService"].full_name
EXPERT_ADMIN = admin_pb2.DESCRIPTOR.services_by_name["ExpertAdminService"].full_name

AUTH_TABLE: AuthTable = {
    f"/{EXECUTOR}/ExtractFeatures": Role.INFER,
    f"/{EXECUTOR}/Generate": Role.INFER,
    f"/{EXECUTOR}/Score": Role.INFER,
    f"/{EXECUTOR}/ListExperts": Role.INFER,
    f"/{EXECUTOR}/GetServerInfo": Role.INFER,
    f"/{EXPERT_ADMIN}/LoadExpert": Role.ADMIN,
    f"/{EXPERT_ADMIN}/UnloadExpert": Role.ADMIN,
    f"/{EXPERT_ADMIN}/ReloadExpert": Role.ADMIN,
}


class ExecutorServicer(executor_pb2_grpc.ExecutorServiceServicer):
    """Features, generation, scoring and what is loaded.

    Args:
        engine: Where the engine comes from.
    """

    def __init__(self, engine: EngineSource) -> None:
        self._engine = engine

    async def ExtractFeatures(  # noqa: N802 (the names are the contract's)
        self, request: executor_pb2.ExtractFeaturesRequest, context: Context
    ) -> executor_pb2.ExtractFeaturesResponse:
        """Features of a prompt and screen."""
        engine = self._engine()
        ask = wire.features_ask(request)
        return wire.features_response(await engine.extract(ask, context.time_remaining()))

    async def Generate(  # noqa: N802
        self, request: executor_pb2.GenerateRequest, context: Context
    ) -> AsyncGenerator[executor_pb2.GenerateResponse, None]:
        """An answer as it comes, then what was applied."""
        engine = self._engine()
        ask = wire.generate_ask(request, engine.facts.limits.max_new_tokens)
        async with aclosing(engine.generate(ask, context.time_remaining())) as events:
            async for event in events:
                yield wire.generate_response(event)

    async def Score(  # noqa: N802
        self, request: executor_pb2.ScoreRequest, context: Context
    ) -> executor_pb2.ScoreResponse:
        """Log-probabilities of a given answer."""
        engine = self._engine()
        scored = await engine.score(wire.score_ask(request), context.time_remaining())
        return wire.score_response(scored, request)

    async def ListExperts(  # noqa: N802
        self, request: executor_pb2.ListExpertsRequest, context: Context
    ) -> executor_pb2.ListExpertsResponse:
        """The loaded experts."""
        engine = self._engine()
        return wire.experts_response(engine.experts(), engine.expert_set)

    async def GetServerInfo(  # noqa: N802
        self, request: executor_pb2.GetServerInfoRequest, context: Context
    ) -> executor_pb2.GetServerInfoResponse:
        """What runs here."""
        engine = self._engine()
        return wire.info_response(engine.facts, engine.experts(), engine.expert_set)


class ExpertAdminServicer(admin_pb2_grpc.ExpertAdminServiceServicer):
    """Changes of what is loaded; each either happens whole or not at all.

    Args:
        engine: Where the engine comes from.
    """

    def __init__(self, engine: EngineSource) -> None:
        self._engine = engine

    async def LoadExpert(  # noqa: N802
        self, request: admin_pb2.LoadExpertRequest, context: Context
    ) -> admin_pb2.LoadExpertResponse:
        """Adds an expert."""
        engine = self._engine()
        expert = wire.expert_message(await engine.load_expert(request.name, request.path))
        return admin_pb2.LoadExpertResponse(expert=expert, expert_set=engine.expert_set)

    async def UnloadExpert(  # noqa: N802
        self, request: admin_pb2.UnloadExpertRequest, context: Context
    ) -> admin_pb2.UnloadExpertResponse:
        """Removes an expert once nobody holds it."""
        engine = self._engine()
        generation = wire.expected_generation(request)
        expert = wire.expert_message(await engine.unload_expert(request.name, generation))
        return admin_pb2.UnloadExpertResponse(expert=expert, expert_set=engine.expert_set)

    async def ReloadExpert(  # noqa: N802
        self, request: admin_pb2.ReloadExpertRequest, context: Context
    ) -> admin_pb2.ReloadExpertResponse:
        """Replaces an expert if its generation is still the expected one."""
        engine = self._engine()
        expert = wire.expert_message(
            await engine.reload_expert(request.name, request.path, request.expected_generation)
        )
        return admin_pb2.ReloadExpertResponse(expert=expert, expert_set=engine.expert_set)
