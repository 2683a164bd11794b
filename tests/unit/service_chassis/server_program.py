"""A real server process for test_server.py: Route answers after as many seconds as asked."""

import asyncio
import sys

from molora.v1 import router_pb2, router_pb2_grpc
from service_chassis.auth import Role
from service_chassis.metrics import ServerMetrics
from service_chassis.server import StartupError, serve
from service_chassis.settings import ServerSettings, parse_settings

SERVICE = "molora.v1.RouterService"


class SlowRouter(router_pb2_grpc.RouterServiceServicer):
    async def Route(self, request, context):
        await asyncio.sleep(float(request.prompt.text or 0))
        return router_pb2.RouteResponse(executor="here")


async def on_drain() -> None:
    print("draining", flush=True)


async def main(behaviour: str, settings: ServerSettings) -> int:
    async def ready(health) -> None:
        if behaviour == "unloadable":
            raise StartupError("there is no model; give one", exit_code=3)
        if behaviour == "broken":
            raise ValueError("secret text")
        health.set_serving(True)
        if behaviour == "watching":
            await asyncio.Event().wait()

    roles = ("Route", "Predict", "GetRouterInfo")
    if behaviour == "unlisted":
        roles = ("Route", "Predict")
    return await serve(
        settings=settings,
        name="router",
        register=lambda server: router_pb2_grpc.add_RouterServiceServicer_to_server(
            SlowRouter(), server
        ),
        services=[SERVICE],
        auth_table={f"/{SERVICE}/{method}": Role.INFER for method in roles},
        metrics=ServerMetrics(),
        ready=ready,
        on_drain=on_drain,
    )


if __name__ == "__main__":
    parsed = parse_settings(ServerSettings, sys.argv[2:], "router")
    sys.exit(asyncio.run(main(sys.argv[1], parsed)))
