"""Rotation over real handshakes; who is let in is in tests/faults/test_security.py."""

import asyncio
import socket
import ssl

import grpc
import pytest

from molora.v1 import router_pb2, router_pb2_grpc
from service_chassis.auth import Role
from service_chassis.health import Health
from service_chassis.metrics import ServerMetrics
from service_chassis.server import build_server
from service_chassis.settings import ServerSettings
from service_chassis.tls import Tls, server_credentials, watch_tls
from tests.support.certificates import Authority, replace, trusting, write_server

SERVICE = "molora.v1.RouterService"


class Router(router_pb2_grpc.RouterServiceServicer):
    async def Route(self, request, context):
        return router_pb2.RouteResponse(executor="here")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
async def serve():
    servers = []

    async def start(files) -> int:
        server = build_server(
            ServerSettings(),
            lambda s: router_pb2_grpc.add_RouterServiceServicer_to_server(Router(), s),
            [SERVICE],
            {f"/{SERVICE}/Route": Role.INFER},
            ServerMetrics(),
            Health([SERVICE]),
        )
        port = server.add_secure_port("127.0.0.1:0", server_credentials(watch_tls(files)))
        await server.start()
        servers.append(server)
        return port

    yield start
    for server in servers:
        await server.stop(None)


async def shown(port: int) -> bytes:
    """The certificate that a new handshake gets, in DER."""

    def shake() -> bytes:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            context.wrap_socket(plain) as secured,
        ):
            return secured.getpeercert(binary_form=True)

    return await asyncio.to_thread(shake)


def der(pair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.certificate.decode())


async def route(channel) -> str:
    stub = router_pb2_grpc.RouterServiceStub(channel)
    return (await stub.Route(router_pb2.RouteRequest(), timeout=10)).executor


async def test_a_changed_certificate_holds_from_the_next_handshake_on(serve, authority, tmp_path):
    old, new = authority.issue(), authority.issue()
    port = await serve(write_server(tmp_path, old))
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", trusting(authority.pem)) as channel:
        assert await route(channel) == "here"
        assert await shown(port) == der(old)
        # The certificate alone does not fit the key: the old pair stays.
        replace(tmp_path / "server.pem", new.certificate)
        assert await shown(port) == der(old)
        replace(tmp_path / "server.key", new.key)
        assert await shown(port) == der(new)
        assert await route(channel) == "here", "the old connection goes on"


async def test_a_changed_client_ca_holds_from_the_next_handshake_on(serve, authority, tmp_path):
    other = Authority()
    files = write_server(tmp_path, authority.issue(), authority.pem)
    port = await serve(files)
    for ca, admitted, refused in ((authority, authority, other), (other, other, authority)):
        replace(files.client_ca, ca.pem)
        credentials = trusting(authority.pem, admitted.issue("agent"))
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
            assert await route(channel) == "here"
        credentials = trusting(authority.pem, refused.issue("agent"))
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await route(channel)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_key_is_not_shown(authority, tmp_path):
    read = Tls.read(write_server(tmp_path, authority.issue()))
    assert b"PRIVATE KEY" in read.key
    assert "PRIVATE KEY" not in repr(read)
