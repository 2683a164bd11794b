"""A client that follows its files, against real servers that ask for them."""

import asyncio
from pathlib import Path

import grpc
import pytest

from molora.v1 import router_pb2, router_pb2_grpc
from service_chassis.auth import Role
from service_chassis.health import Health
from service_chassis.metrics import ServerMetrics
from service_chassis.server import build_server
from service_chassis.settings import ServerSettings, stays_here
from service_chassis.tls import server_credentials, watch_tls
from service_chassis.upstream import ClientTls, Upstream, UpstreamFiles, read_token
from tests.support.certificates import Authority, Pair, replace, write_server

SERVICE = "molora.v1.RouterService"


class Router(router_pb2_grpc.RouterServiceServicer):
    """Predict says who called, and a second time when it is let go on."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.shown: list[tuple[str | None, bytes]] = []

    async def Route(self, request, context):
        token = dict(context.invocation_metadata()).get("authorization")
        [certificate] = context.auth_context().get("x509_pem_cert", [b""])
        self.shown.append((token, certificate))
        return router_pb2.RouteResponse()

    async def Predict(self, request, context):
        yield router_pb2.PredictResponse()
        await self.go_on.wait()
        yield router_pb2.PredictResponse()


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
async def serve():
    servers = []

    async def start(files=None) -> tuple[Router, str]:
        router = Router()
        server = build_server(
            ServerSettings(),
            lambda s: router_pb2_grpc.add_RouterServiceServicer_to_server(router, s),
            [SERVICE],
            {f"/{SERVICE}/{method}": Role.INFER for method in ("Route", "Predict")},
            ServerMetrics(),
            Health([SERVICE]),
        )
        port = (
            server.add_secure_port("127.0.0.1:0", server_credentials(watch_tls(files)))
            if files
            else server.add_insecure_port("127.0.0.1:0")
        )
        await server.start()
        servers.append(server)
        return router, f"127.0.0.1:{port}"

    yield start
    for server in servers:
        await server.stop(None)


def write_client(folder: Path, ca: bytes, pair: Pair) -> UpstreamFiles:
    files = UpstreamFiles(folder / "ca.pem", folder / "client.pem", folder / "client.key")
    for path, content in zip(
        (files.ca, files.certificate, files.key), (ca, pair.certificate, pair.key), strict=True
    ):
        replace(path, content)
    return files


def upstream(address: str, files: UpstreamFiles) -> Upstream:
    return Upstream(address, files, (), router_pb2_grpc.RouterServiceStub)


async def route(made: Upstream) -> None:
    async with made.stub() as stub:
        await stub.Route(router_pb2.RouteRequest(), timeout=10, metadata=made.metadata())


async def test_a_changed_certificate_is_shown_from_the_next_call_on(
    serve, authority, tmp_path, logs
):
    router, address = await serve(write_server(tmp_path, authority.issue(), authority.pem))
    old, new = authority.issue("old"), authority.issue("new")
    made = upstream(address, write_client(tmp_path, authority.pem, old))
    await route(made)
    # The certificate alone does not fit the key: the old pair stays.
    replace(tmp_path / "client.pem", new.certificate)
    await route(made)
    replace(tmp_path / "client.key", new.key)
    await route(made)
    await made.close()
    first, second, third = (certificate for _, certificate in router.shown)
    assert first == second
    assert first.strip() in old.certificate.replace(b"\r\n", b"\n")
    assert third.strip() in new.certificate.replace(b"\r\n", b"\n")
    said = [entry["event"] for entry in logs if entry.get("what") == "upstream tls"]
    assert said == ["changed files cannot be used, the old stay", "changed files are in force"]


async def test_a_call_that_runs_goes_on_over_the_old_connection(serve, authority, tmp_path):
    router, address = await serve(write_server(tmp_path, authority.issue(), authority.pem))
    files = write_client(tmp_path, authority.pem, authority.issue("old"))
    made = upstream(address, files)
    async with made.stub() as stub:
        before = made._connections[0].channel
        call = stub.Predict(router_pb2.PredictRequest(), timeout=10)
        assert await call.read() is not grpc.aio.EOF
        write_client(tmp_path, authority.pem, authority.issue("new"))
        await route(made)
        assert len(made._connections) == 2
        assert before.get_state() is grpc.ChannelConnectivity.READY
        router.go_on.set()
        assert await call.read() is not grpc.aio.EOF
        assert await call.read() is grpc.aio.EOF
    assert len(made._connections) == 1, "its last user closes it"
    assert before.get_state() is grpc.ChannelConnectivity.SHUTDOWN
    await route(made)
    await made.close()


async def test_a_changed_ca_holds_from_the_next_call_on(serve, authority, tmp_path):
    other = Authority()
    _, address = await serve(write_server(tmp_path, other.issue()))
    replace(tmp_path / "ca.pem", authority.pem)
    made = upstream(address, UpstreamFiles(ca=tmp_path / "ca.pem"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await route(made)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    replace(tmp_path / "ca.pem", other.pem)
    await route(made)
    await made.close()


async def test_a_changed_token_is_sent_from_the_next_call_on(serve, tmp_path):
    router, address = await serve()
    path = tmp_path / "token"
    replace(path, b"one\n")
    made = upstream(address, UpstreamFiles(token=path))
    await route(made)
    replace(path, b"two words")
    await route(made)
    replace(path, b"  two  \n")
    await route(made)
    await made.close()
    assert [token for token, _ in router.shown] == ["Bearer one", "Bearer one", "Bearer two"]


async def test_without_files_it_is_plaintext_without_a_token(serve):
    router, address = await serve()
    made = upstream(address, UpstreamFiles())
    assert made.metadata() == ()
    await route(made)
    await made.close()
    assert router.shown == [(None, b"")]


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", "schlüssel".encode(), b"a\x00b"])
def test_what_is_no_token_is_refused_without_quoting_it(tmp_path, content):
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not one word") as caught:
        read_token(path)
    assert "two" not in str(caught.value)


def test_keys_and_certificates_that_do_not_belong_together(authority, tmp_path):
    files = write_client(tmp_path, authority.pem, authority.issue("a"))
    read = ClientTls.read(files.ca, files.certificate, files.key)
    assert b"PRIVATE KEY" in read.key
    assert "PRIVATE KEY" not in repr(read)
    replace(files.key, authority.issue("b").key)
    with pytest.raises(OSError, match="key"):
        ClientTls.read(files.ca, files.certificate, files.key)
    replace(files.ca, b"no PEM")
    with pytest.raises(OSError, match="no certificate"):
        ClientTls.read(files.ca, None, None)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:1", True),
        ("127.8.0.1:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("unix:/run/molora.sock", True),
        ("0.0.0.0:1", False),
        ("10.0.0.7:1", False),
        ("localhost.example:1", False),
        ("dns:///127.0.0.1:1", False),
        ("127.0.0.1.example:1", False),
        ("", False),
    ],
)
def test_what_stays_on_this_machine(address, expected):
    """As molora_client.channel.is_loopback, whose rule about tokens is the same."""
    assert stays_here(address) is expected
