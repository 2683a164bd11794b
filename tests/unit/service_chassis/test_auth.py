import asyncio
import hashlib

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from molora.v1 import router_pb2
from service_chassis.auth import Role, TokenTable, caller, check_auth_table

SERVICE = "molora.v1.RouterService"


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


async def code_of(call) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_roles(start, tokens_file):
    stub = (await start(tokens_file=tokens_file)).stub
    route, info = router_pb2.RouteRequest(), router_pb2.GetRouterInfoRequest()
    assert await code_of(stub.Route(route, metadata=bearer("infer-token"))) is grpc.StatusCode.OK
    assert await code_of(stub.Route(route, metadata=bearer("admin-token"))) is grpc.StatusCode.OK
    denied = grpc.StatusCode.PERMISSION_DENIED
    assert await code_of(stub.Route(route, metadata=bearer("m-token"))) is denied
    assert await code_of(stub.GetRouterInfo(info, metadata=bearer("infer-token"))) is denied


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        bearer("wrong"),
        bearer(""),
        (("authorization", "Bearer"),),
        (("authorization", "infer-token"),),
        (("authorization", "Basic infer-token"),),
        bearer("infer-token") * 2,
    ],
)
async def test_unknown_callers_are_unauthenticated(start, tokens_file, metadata, details):
    running = await start(tokens_file=tokens_file)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.stub.Route(router_pb2.RouteRequest(), metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert details(caught.value)["ErrorInfo"].reason == "TOKEN_REFUSED"


async def test_refused_before_the_request_is_parsed(start, tokens_file):
    running = await start(tokens_file=tokens_file)
    raw = running.channel.unary_unary(f"/{SERVICE}/Route")
    assert await code_of(raw(b"\xff\xff")) is grpc.StatusCode.UNAUTHENTICATED


async def test_health_is_public_and_reflection_is_not(start, tokens_file):
    running = await start(tokens_file=tokens_file)
    health = health_pb2_grpc.HealthStub(running.channel)
    assert await code_of(health.Check(health_pb2.HealthCheckRequest())) is grpc.StatusCode.OK
    reflection = reflection_pb2_grpc.ServerReflectionStub(running.channel)
    asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
    call = reflection.ServerReflectionInfo(iter(asked))
    assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
    call = reflection.ServerReflectionInfo(iter(asked), metadata=bearer("infer-token"))
    (answer,) = [response async for response in call]
    names = {service.name for service in answer.list_services_response.service}
    assert names == {
        SERVICE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


async def test_a_method_that_slipped_past_the_table_is_refused(start):
    running = await start(auth_table={})
    code = await code_of(running.stub.Route(router_pb2.RouteRequest()))
    assert code is grpc.StatusCode.PERMISSION_DENIED


def test_table_must_match_the_descriptor():
    table = {f"/{SERVICE}/{name}": Role.INFER for name in ("Route", "Predict", "GetRouterInfo")}
    check_auth_table([SERVICE], table)
    with pytest.raises(ValueError, match=f"no role .*/{SERVICE}/Predict"):
        check_auth_table([SERVICE], {k: v for k, v in table.items() if "Predict" not in k})
    with pytest.raises(ValueError, match=f"do not exist: /{SERVICE}/Gone"):
        check_auth_table([SERVICE], {**table, f"/{SERVICE}/Gone": Role.ADMIN})


@pytest.mark.parametrize("line", ["root secret-1", "infer", "infer secret-1 more", "public x"])
def test_bad_tokens_file_is_refused_without_quoting_it(tmp_path, line):
    path = tmp_path / "tokens"
    path.write_text(f"infer ok\n{line}\n")
    with pytest.raises(ValueError, match="line 2") as caught:
        TokenTable.read(path)
    assert "secret-1" not in str(caught.value)


def test_empty_tokens_file_is_refused(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("# nothing\n")
    with pytest.raises(ValueError, match="no token"):
        TokenTable.read(path)


async def test_the_log_says_who_called_without_the_token(start, tokens_file, logs):
    running = await start(tokens_file=tokens_file)
    info = router_pb2.GetRouterInfoRequest()
    for metadata in (bearer("infer-token"), bearer("wrong-token"), bearer("admin-token")):
        await code_of(running.stub.GetRouterInfo(info, metadata=metadata))
    for _ in range(500):
        if len(logs) == 3:
            break
        await asyncio.sleep(0.01)
    fingerprints = {
        token: f"token:{hashlib.sha256(token.encode()).hexdigest()[:16]}"
        for token in ("infer-token", "admin-token")
    }
    assert [(entry["code"], entry["caller"]) for entry in logs] == [
        ("PERMISSION_DENIED", fingerprints["infer-token"]),
        ("UNAUTHENTICATED", "anonymous"),
        ("OK", fingerprints["admin-token"]),
    ]
    assert "-token'" not in str(logs)


def test_a_certificate_is_named_where_no_token_is_asked_for():
    digest = hashlib.sha256(b"PEM").hexdigest()[:16]
    assert caller([], [b"PEM"]) == f"certificate:{digest}"
    token = hashlib.sha256(b"s3cret").hexdigest()[:16]
    assert caller(["Bearer s3cret"], [b"PEM"]) == f"token:{token}"
    assert caller([], []) == "anonymous"
