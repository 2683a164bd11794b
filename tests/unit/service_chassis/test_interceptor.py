import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from molora.v1 import router_pb2
from service_chassis.errors import InvalidArgument, ResourceExhausted

SECRET = "patient Jane Canary-4711"
SERVICE = "molora.v1.RouterService"


async def failure(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def until_logged(logs, count: int = 1) -> None:
    """The server's side of a call may end after the client's."""
    for _ in range(500):
        if len(logs) >= count:
            return
        await asyncio.sleep(0.01)


def raising(error: Exception):
    def route(request):
        raise error

    return route


async def test_foreign_exception_text_reaches_neither_client_nor_log(start, logs, details):
    running = await start()
    running.router.route = raising(ValueError(SECRET))
    error = await failure(running.stub.Route(router_pb2.RouteRequest()))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert SECRET not in error.details() + str(error.trailing_metadata())
    assert details(error)["ErrorInfo"].reason == "INTERNAL"
    await until_logged(logs)
    assert SECRET not in str(logs)
    (entry,) = logs
    assert entry["exception"]["type"] == "ValueError"
    assert any("conftest" in where for where in entry["exception"]["where"])
    assert entry["log_level"] == "error"


async def test_foreign_exception_in_a_stream_is_internal(start, logs):
    running = await start()
    running.router.predict_events = [
        router_pb2.PredictResponse(context_id="c"),
        ValueError(SECRET),
    ]
    call = running.stub.Predict(router_pb2.PredictRequest())
    assert (await call.read()).context_id == "c"
    error = await failure(call.read())
    assert error.code() is grpc.StatusCode.INTERNAL
    assert SECRET not in error.details()
    await until_logged(logs)
    assert running.router.closed == 1


async def test_reason_metadata_and_retry_info_arrive(start, details):
    running = await start()
    running.router.route = raising(
        ResourceExhausted("QUEUE_FULL", "Try later.", retry_after_s=1.5, queue_length=8)
    )
    error = await failure(running.stub.Route(router_pb2.RouteRequest()))
    assert (error.code(), error.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "Try later.")
    found = details(error)
    assert found["status"].code == 8
    assert found["ErrorInfo"].reason == "QUEUE_FULL"
    assert found["ErrorInfo"].domain == "molora"
    assert dict(found["ErrorInfo"].metadata) == {"queue_length": "8"}
    assert found["RetryInfo"].retry_delay.ToMilliseconds() == 1500


async def test_no_retry_info_unless_asked_for(start, details):
    running = await start()
    running.router.route = raising(InvalidArgument("EMPTY_PROMPT", "Say something."))
    error = await failure(running.stub.Route(router_pb2.RouteRequest()))
    assert "RetryInfo" not in details(error)


async def test_a_name_of_a_megabyte_does_not_break_the_status(start, details):
    running = await start()
    running.router.route = raising(InvalidArgument("BAD_NAME", "Shorter.", name="ü" * 2**20))
    error = await failure(running.stub.Route(router_pb2.RouteRequest()))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(error)["ErrorInfo"].metadata["name"] == "ü" * 200


async def test_request_id_is_echoed_and_logged(start, logs):
    running = await start()
    call = running.stub.Route(
        router_pb2.RouteRequest(request_id="from-field"), metadata=(("x-request-id", "abc-1"),)
    )
    await call
    assert dict(await call.initial_metadata())["x-request-id"] == "abc-1"
    await until_logged(logs)
    assert [entry["request_id"] for entry in logs] == ["abc-1"]


async def test_request_id_of_the_message_is_used(start):
    running = await start()
    call = running.stub.Predict(router_pb2.PredictRequest(request_id="from-field"))
    assert dict(await call.initial_metadata())["x-request-id"] == "from-field"
    assert [response async for response in call] == []


@pytest.mark.parametrize("offered", ["x" * 129, "a b", ""])
async def test_unusable_request_id_is_replaced(start, offered):
    running = await start()
    call = running.stub.Route(router_pb2.RouteRequest(), metadata=(("x-request-id", offered),))
    await call
    echoed = dict(await call.initial_metadata())["x-request-id"]
    assert len(echoed) == 32
    assert echoed != offered


async def test_one_log_line_and_one_count_per_call(start, logs):
    running = await start()
    await running.stub.Route(router_pb2.RouteRequest())
    running.router.route = raising(InvalidArgument("EMPTY_PROMPT", "Say something."))
    await failure(running.stub.Route(router_pb2.RouteRequest()))
    await until_logged(logs, count=2)
    assert [(entry["method"], entry["code"]) for entry in logs] == [
        (f"{SERVICE}/Route", "OK"),
        (f"{SERVICE}/Route", "INVALID_ARGUMENT"),
    ]
    assert logs[1]["reason"] == "EMPTY_PROMPT"
    labels = {"grpc_service": SERVICE, "grpc_method": "Route"}
    assert running.sample("grpc_server_started_total", **labels) == 2
    assert running.sample("grpc_server_handled_total", grpc_code="OK", **labels) == 1
    assert running.sample("grpc_server_handling_seconds_count", **labels) == 2


async def test_unknown_method_is_unimplemented_and_makes_no_new_label(start, logs):
    running = await start()
    unknown = running.channel.unary_unary(f"/{SERVICE}/{'x' * 50}")
    error = await failure(unknown(b""))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    await until_logged(logs)
    labels = {"grpc_service": "unknown", "grpc_method": "unknown"}
    assert running.sample("grpc_server_handled_total", grpc_code="UNIMPLEMENTED", **labels) == 1


async def test_undecodable_request_is_answered_and_counted(start, details, logs):
    running = await start()
    raw = running.channel.unary_unary(f"/{SERVICE}/Route")
    error = await failure(raw(b"\xff\xff\xff"))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert details(error)["ErrorInfo"].reason == "UNDECODABLE_REQUEST"
    await until_logged(logs)
    assert len(logs) == 1


async def test_cancelled_stream_closes_its_generator_at_once(start, logs):
    running = await start()
    started = asyncio.Event()

    async def wait_forever():
        started.set()
        await asyncio.Event().wait()

    running.router.predict_events = [wait_forever]
    call = running.stub.Predict(router_pb2.PredictRequest())
    await started.wait()
    call.cancel()
    await until_logged(logs)
    assert running.router.closed == 1
    assert [entry["code"] for entry in logs] == ["CANCELLED"]


async def test_deadline_is_counted_as_such(start, logs):
    running = await start()

    async def wait_forever():
        await asyncio.Event().wait()

    running.router.predict_events = [wait_forever]
    error = await failure(running.stub.Predict(router_pb2.PredictRequest(), timeout=0.2).read())
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until_logged(logs)
    assert [entry["code"] for entry in logs] == ["DEADLINE_EXCEEDED"]


async def test_a_call_without_a_deadline_has_the_servers(start, logs, details):
    running = await start(call_max_s=0.2)

    async def wait_forever():
        await asyncio.Event().wait()

    running.router.predict_events = [router_pb2.PredictResponse(context_id="c"), wait_forever]
    call = running.stub.Predict(router_pb2.PredictRequest())
    assert (await call.read()).context_id == "c"
    error = await failure(call.read())
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert details(error)["ErrorInfo"].reason == "CALL_TOO_LONG"
    await until_logged(logs)
    assert running.router.closed == 1
    assert [entry["code"] for entry in logs] == ["DEADLINE_EXCEEDED"]


async def test_a_caller_who_reads_nothing_holds_nothing_for_long(start, logs):
    running = await start(call_max_s=0.5)
    large = router_pb2.PredictResponse(context_id="x" * 2**20)
    running.router.predict_events = [large] * 100
    call = running.stub.Predict(router_pb2.PredictRequest())
    for _ in range(500):
        if running.router.closed:
            break
        await asyncio.sleep(0.01)
    assert running.router.closed == 1
    call.cancel()


async def test_health_may_be_watched_for_longer(start):
    running = await start(call_max_s=0.2)
    watch = health_pb2_grpc.HealthStub(running.channel).Watch(health_pb2.HealthCheckRequest())
    await watch.read()
    await asyncio.sleep(0.4)
    assert not watch.done()
    watch.cancel()


async def test_message_over_the_limit_is_resource_exhausted(start):
    running = await start(max_message_bytes=2**16)
    request = router_pb2.RouteRequest()
    request.screen.data = bytes(2**17)
    error = await failure(running.stub.Route(request))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(("size", "refused"), [(6_000, False), (9_000, True), (12_000, True)])
async def test_metadata_limit_is_a_rule_not_a_chance(start, size, refused):
    running = await start()
    for _ in range(5):
        call = running.stub.Route(router_pb2.RouteRequest(), metadata=(("x-padding", "p" * size),))
        if refused:
            assert (await failure(call)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        else:
            await call
