import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import structlog

from molora.v1 import router_pb2, router_pb2_grpc
from service_chassis.auth import Role
from service_chassis.health import Health
from service_chassis.metrics import ServerMetrics
from service_chassis.server import build_server
from service_chassis.settings import ServerSettings

SERVICE = "molora.v1.RouterService"
AUTH_TABLE = {
    f"/{SERVICE}/Route": Role.INFER,
    f"/{SERVICE}/Predict": Role.INFER,
    f"/{SERVICE}/GetRouterInfo": Role.ADMIN,
}


class FakeRouter(router_pb2_grpc.RouterServiceServicer):
    """Answers with what the test put there; the contract is only the payload."""

    def __init__(self) -> None:
        self.route = lambda request: router_pb2.RouteResponse(executor="here")
        self.predict_events: list[object] = []
        self.closed = 0

    async def Route(self, request, context):
        return self.route(request)

    async def Predict(self, request, context):
        try:
            for event in self.predict_events:
                if isinstance(event, Exception):
                    raise event
                yield await event() if callable(event) else event
        finally:
            self.closed += 1

    async def GetRouterInfo(self, request, context):
        return router_pb2.GetRouterInfoResponse(version="1")


@dataclass
class Running:
    stub: router_pb2_grpc.RouterServiceStub
    channel: grpc.aio.Channel
    router: FakeRouter
    metrics: ServerMetrics
    health: Health
    server: grpc.aio.Server

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def logs():
    """Every event that the code under test logs, as the JSON renderer would get it."""
    before = structlog.get_config()
    captured = structlog.testing.LogCapture()
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, captured],
        cache_logger_on_first_use=False,
    )
    yield captured.entries
    structlog.configure(**before)


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text("# for the tests\ninfer infer-token\nadmin admin-token\n\nmetrics m-token\n")
    return path


@pytest.fixture
async def start(logs) -> AsyncIterator[Callable]:
    """Starts a server in this loop; stops everything at the end."""
    async with contextlib.AsyncExitStack() as stack:

        async def start_server(auth_table=AUTH_TABLE, **settings: object) -> Running:
            router = FakeRouter()
            metrics = ServerMetrics()
            health = Health([SERVICE])
            server = build_server(
                ServerSettings(**settings),
                lambda s: router_pb2_grpc.add_RouterServiceServicer_to_server(router, s),
                [SERVICE],
                auth_table,
                metrics,
                health,
            )
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            stack.push_async_callback(server.stop, None)
            channel = await stack.enter_async_context(
                grpc.aio.insecure_channel(f"127.0.0.1:{port}")
            )
            stub = router_pb2_grpc.RouterServiceStub(channel)
            return Running(stub, channel, router, metrics, health, server)

        yield start_server


def rich_details(error: grpc.aio.AioRpcError) -> dict:
    """The details of a failed call by message name."""
    from google.rpc import error_details_pb2, status_pb2

    packed = status_pb2.Status.FromString(
        dict(error.trailing_metadata())["grpc-status-details-bin"]
    )
    found: dict[str, object] = {"status": packed}
    for detail in packed.details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo):
            if detail.Is(kind.DESCRIPTOR):
                found[kind.__name__] = kind.FromString(detail.value)
    return found


@pytest.fixture
def details() -> Callable:
    return rich_details
