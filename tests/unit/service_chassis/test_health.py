import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVICE = "molora.v1.RouterService"
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING


def asked(service: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


@pytest.mark.parametrize("service", ["", SERVICE])
async def test_not_serving_until_the_service_says_so(start, service):
    running = await start()
    health = health_pb2_grpc.HealthStub(running.channel)
    assert (await health.Check(asked(service))).status == NOT_SERVING
    running.health.set_serving(True)
    assert (await health.Check(asked(service))).status == SERVING
    running.health.set_serving(False)
    assert (await health.Check(asked(service))).status == NOT_SERVING


async def test_unknown_service(start):
    running = await start()
    health = health_pb2_grpc.HealthStub(running.channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health.Check(asked("no.such"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    watch = health.Watch(asked("no.such"))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


async def test_watchers_are_independent_and_end_with_the_drain(start):
    running = await start()
    health = health_pb2_grpc.HealthStub(running.channel)
    leaver, stayer = health.Watch(asked("")), health.Watch(asked(SERVICE))
    assert (await leaver.read()).status == NOT_SERVING
    assert (await stayer.read()).status == NOT_SERVING
    leaver.cancel()
    await asyncio.sleep(0.05)
    running.health.set_serving(True)
    assert (await stayer.read()).status == SERVING
    running.health.drain()
    assert (await stayer.read()).status == NOT_SERVING
    assert await stayer.read() is grpc.aio.EOF
    running.health.set_serving(True)
    assert not running.health.serving
