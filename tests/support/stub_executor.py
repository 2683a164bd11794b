"""An executor that serves real protobuf on a real socket, with ready features and no model."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from molora.v1 import executor_pb2, executor_pb2_grpc, types_pb2
from router_service.core import ExpertEntry
from service_chassis.auth import Role
from service_chassis.errors import ServiceError
from service_chassis.health import Health
from service_chassis.metrics import ServerMetrics
from service_chassis.server import build_server
from service_chassis.settings import ServerSettings
from service_chassis.tls import TlsFiles, server_credentials, watch_tls
from tests.support import router_bundle

_SERVICE = "molora.v1.ExecutorService"
_METHODS = ("ExtractFeatures", "Generate", "Score", "ListExperts", "GetServerInfo")


class StubExecutor(executor_pb2_grpc.ExecutorServiceServicer):
    """Answers with what the test put into its attributes, and remembers what it was asked.

    The prompt's text decides the features: text element k is 9 where it names expert k.
    """

    def __init__(self) -> None:
        self.experts: Sequence[ExpertEntry] = router_bundle.EXPERTS
        self.model = router_bundle.SPEC.base_digest
        self.feature_spec = router_bundle.SPEC.digest
        self.expert_set = "set-1"
        self.fail: ServiceError | None = None
        self.delay_s = 0.0
        self.features: tuple[list[float], list[float]] | None = None
        self.events: list[executor_pb2.GenerateResponse | ServiceError] = [
            executor_pb2.GenerateResponse(delta=executor_pb2.Delta(text="cli", token_ids=[1])),
            executor_pb2.GenerateResponse(delta=executor_pb2.Delta(text="ck", token_ids=[2])),
            executor_pb2.GenerateResponse(
                completed=executor_pb2.Completed(
                    finish_reason=executor_pb2.FINISH_REASON_STOP,
                    usage=types_pb2.Usage(completion_tokens=2),
                )
            ),
        ]
        self.address = ""
        self.seen: list[Any] = []
        self.request_ids: list[str | None] = []
        self.cancelled = asyncio.Event()

    async def GetServerInfo(self, request: Any, context: Any) -> Any:
        spec = router_bundle.SPEC
        return executor_pb2.GetServerInfoResponse(
            model=self.model,
            feature_spec=executor_pb2.FeatureSpec(
                digest=self.feature_spec,
                text_layer=spec.text_layer,
                text_pooling=spec.text_pooling,
                vision_source=spec.vision_source,
                vision_pooling=spec.vision_pooling,
                text_dim=spec.text_dim,
                vision_dim=spec.vision_dim,
                base_digest=spec.base_digest,
                template_version=spec.template_version,
            ),
            expert_set=self.expert_set,
            experts=[
                types_pb2.ExpertIdentity(name=expert.name, digest=expert.digest, generation=1)
                for expert in self.experts
            ],
        )

    async def ExtractFeatures(self, request: Any, context: Any) -> Any:
        await self._note(request, context)
        names = [expert.name for expert in router_bundle.EXPERTS]
        text = [9.0 * (name in request.prompt.text) for name in names] + [0.0]
        text, vision = self.features or (text, [1.0, 1.0, 1.0])
        return executor_pb2.ExtractFeaturesResponse(
            context_id="context-1",
            text_features=text,
            vision_features=vision,
            feature_spec=self.feature_spec,
            model=self.model,
            expert_set=self.expert_set,
        )

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            await self._note(request, context)
            for event in self.events:
                if isinstance(event, ServiceError):
                    raise event
                yield event
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def ListExperts(self, request: Any, context: Any) -> Any:
        return executor_pb2.ListExpertsResponse(
            experts=[
                executor_pb2.Expert(
                    name=expert.name, label=expert.label, digest=expert.digest, generation=1
                )
                for expert in self.experts
            ],
            expert_set=self.expert_set,
        )

    async def Score(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def _note(self, request: Any, context: Any) -> None:
        self.seen.append(request)
        self.request_ids.append(dict(context.invocation_metadata()).get("x-request-id"))
        await asyncio.sleep(self.delay_s)
        if self.fail is not None:
            raise self.fail


@contextlib.asynccontextmanager
async def serving(
    stub: StubExecutor,
    port: int = 0,
    tls: TlsFiles | None = None,
    tokens_file: Path | None = None,
) -> AsyncIterator[str]:
    """Serve the stub on loopback; yields its address."""
    server = build_server(
        ServerSettings(tokens_file=tokens_file),
        lambda s: executor_pb2_grpc.add_ExecutorServiceServicer_to_server(stub, s),
        [_SERVICE],
        {f"/{_SERVICE}/{method}": Role.INFER for method in _METHODS},
        ServerMetrics(),
        Health([_SERVICE]),
    )
    wanted = f"127.0.0.1:{port}"
    taken = (
        server.add_secure_port(wanted, server_credentials(watch_tls(tls)))
        if tls
        else server.add_insecure_port(wanted)
    )
    await server.start()
    try:
        yield f"127.0.0.1:{taken}"
    finally:
        await server.stop(None)
