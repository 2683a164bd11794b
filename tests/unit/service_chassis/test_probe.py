import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc

from service_chassis import probe
from service_chassis.health import Health
from service_chassis.tls import server_credentials, watch_tls
from tests.support.certificates import Authority, write_server


@pytest.fixture
async def listening(tmp_path):
    servers = []

    async def start(names, expired=False, mutual=False):
        health, server = Health([]), grpc.aio.server()
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        if names is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            authority = Authority()
            pair = authority.issue(*names, expired=expired)
            files = write_server(tmp_path, pair, authority.pem if mutual else None)
            port = server.add_secure_port("127.0.0.1:0", server_credentials(watch_tls(files)))
        await server.start()
        servers.append(server)
        return health, port

    yield start
    for server in servers:
        await server.stop(None)


async def asked(port: int, *pair: object) -> int:
    return await asyncio.to_thread(probe.main, [f"127.0.0.1:{port}", *map(str, pair)])


@pytest.mark.parametrize("names", [None, ("127.0.0.1",), ("molora.example", "localhost")])
async def test_a_server_says_whether_it_serves(listening, names):
    health, port = await listening(names)
    assert await asked(port) == 1
    health.set_serving(True)
    assert await asked(port) == 0


async def test_nobody_there(monkeypatch):
    monkeypatch.setattr(probe, "_PATIENCE_S", 0.3)
    assert await asked(1) == 1


async def test_an_expired_certificate_is_not_healthy(listening):
    health, port = await listening(("localhost",), expired=True)
    health.set_serving(True)
    assert await asked(port) == 1


async def test_under_mutual_tls_it_shows_what_it_is_given(listening, tmp_path):
    health, port = await listening(("molora.example",), mutual=True)
    health.set_serving(True)
    assert await asked(port) == 1
    assert await asked(port, tmp_path / "server.pem", tmp_path / "server.key") == 0
