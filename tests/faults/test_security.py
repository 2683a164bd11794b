"""F99 to F106 and F117 to F122, as far as they are the servers' doors: one test a fault.

The calls go over real sockets to the executor's own servicers and auth table; behind them is no
engine, so whoever gets past the door is told UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import logging
import pkgutil
import random
import socket
import ssl
import subprocess
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf import descriptor_pool
from pydantic import SecretStr

import molora.v1
from executor_service.errors import still_loading
from executor_service.servicer import AUTH_TABLE as EXECUTOR_AUTH
from executor_service.servicer import (
    EXECUTOR,
    EXPERT_ADMIN,
    ExecutorServicer,
    ExpertAdminServicer,
)
from executor_service.settings import ExecutorSettings
from molora.v1 import admin_pb2_grpc, executor_pb2, executor_pb2_grpc
from molora_client import InvalidArgumentError, Molora
from router_service.server import AUTH_TABLE as ROUTER_AUTH
from router_service.settings import RouterSettings
from service_chassis.auth import CHASSIS_AUTH, METRICS_AUTH, Role, TokenTable, check_auth_table
from service_chassis.errors import Unauthenticated
from service_chassis.health import Health
from service_chassis.logging import configure_logging
from service_chassis.metrics import ServerMetrics
from service_chassis.server import build_server
from service_chassis.settings import ServerSettings, parse_settings
from service_chassis.tls import server_credentials, watch_tls
from tests.support.certificates import Authority, replace, trusting, write_server

TABLES = {**EXECUTOR_AUTH, **ROUTER_AUTH, **CHASSIS_AUTH}
ADMITTED = grpc.StatusCode.UNAVAILABLE


@dataclass
class Door:
    """A server, and how often something behind its door was reached."""

    address: str = ""
    reached: int = 0
    metrics: ServerMetrics = field(default_factory=ServerMetrics)

    def engine(self) -> Any:
        self.reached += 1
        raise still_loading()

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


@pytest.fixture
async def door() -> AsyncIterator[Callable[..., Any]]:
    """Starts executors without an engine."""
    before = structlog.get_config()
    structlog.configure(processors=[structlog.testing.LogCapture()])
    async with contextlib.AsyncExitStack() as stack:

        async def start(tls: Any = None, **settings: object) -> Door:
            made = Door()

            def register(server: grpc.aio.Server) -> None:
                executor_pb2_grpc.add_ExecutorServiceServicer_to_server(
                    ExecutorServicer(made.engine), server
                )
                admin_pb2_grpc.add_ExpertAdminServiceServicer_to_server(
                    ExpertAdminServicer(made.engine), server
                )

            names = [EXECUTOR, EXPERT_ADMIN]
            server = build_server(
                ServerSettings(**settings),
                register,
                names,
                EXECUTOR_AUTH,
                made.metrics,
                Health(names),
            )
            if tls is None:
                port = server.add_insecure_port("127.0.0.1:0")
            else:
                port = server.add_secure_port("127.0.0.1:0", server_credentials(watch_tls(tls)))
            await server.start()
            stack.push_async_callback(server.stop, None)
            made.address = f"127.0.0.1:{port}"
            return made

        yield start
    structlog.configure(**before)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text("infer agent-token\nadmin admin-token\nmetrics metrics-token\n")
    return path


def bearer(*tokens: str) -> tuple[tuple[str, str], ...]:
    return tuple(("authorization", f"Bearer {token}") for token in tokens)


async def code_of(
    address: str,
    method: str,
    metadata: tuple[tuple[str, str], ...] = (),
    credentials: grpc.ChannelCredentials | None = None,
    body: bytes = b"",
) -> grpc.StatusCode:
    """Calls any method with any bytes.

    One message in one batch: grpc.aio turns a streamed write to a call that the server has already
    refused into INTERNAL of its own.
    """
    channel = (
        grpc.aio.secure_channel(address, credentials)
        if credentials
        else grpc.aio.insecure_channel(address)
    )
    async with channel:
        call = channel.unary_stream(method)(body, metadata=metadata, timeout=10)
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for _ in call:
                pass
        return await call.code()


async def test_f099_no_token(door: Callable[..., Any], tokens: Path) -> None:
    closed: Door = await door(tokens_file=tokens)
    for method, role in {**EXECUTOR_AUTH, **CHASSIS_AUTH}.items():
        if role is not Role.PUBLIC:
            assert await code_of(closed.address, method) is grpc.StatusCode.UNAUTHENTICATED
    assert closed.reached == 0


async def test_f100_wrong_token(door: Callable[..., Any], tokens: Path) -> None:
    closed: Door = await door(tokens_file=tokens)
    method = f"/{EXECUTOR}/ListExperts"
    wrong = [
        bearer("wrong"),
        bearer(""),
        bearer("agent-token", "agent-token"),
        bearer("agent-token "),
        (("authorization", "Bearer"),),
        (("authorization", "agent-token"),),
        (("authorization", "Basic agent-token"),),
    ]
    for metadata in wrong:
        assert await code_of(closed.address, method, metadata) is grpc.StatusCode.UNAUTHENTICATED
    assert closed.reached == 0
    assert await code_of(closed.address, method, bearer("agent-token")) is ADMITTED
    # A token expires when its line goes: at once, without a restart.
    replace(tokens, b"infer another-token\n")
    expired = await code_of(closed.address, method, bearer("agent-token"))
    assert expired is grpc.StatusCode.UNAUTHENTICATED
    assert await code_of(closed.address, method, bearer("another-token")) is ADMITTED
    # No client can send these; the table refuses them all the same.
    for odd in ("Bearer tokén", "Bearer \udcff", "Bearer agent-token\n"):
        with pytest.raises(Unauthenticated):
            TokenTable([(Role.INFER, "agent-token")]).roles([odd])


async def test_f101_user_on_admin_methods(door: Callable[..., Any], tokens: Path) -> None:
    closed: Door = await door(tokens_file=tokens)
    for method, role in EXECUTOR_AUTH.items():
        denied = role is Role.ADMIN
        expected = grpc.StatusCode.PERMISSION_DENIED if denied else ADMITTED
        before = closed.reached
        assert await code_of(closed.address, method, bearer("agent-token")) is expected
        # Whoever is denied has not even reached the engine, which alone knows files.
        assert closed.reached - before == (not denied)
        assert await code_of(closed.address, method, bearer("admin-token")) is ADMITTED
        wrong_role = await code_of(closed.address, method, bearer("metrics-token"))
        assert wrong_role is grpc.StatusCode.PERMISSION_DENIED


def services() -> list[str]:
    """Every service of every proto."""
    for module in pkgutil.iter_modules(molora.v1.__path__):
        importlib.import_module(f"molora.v1.{module.name}")
    files = [m.DESCRIPTOR for n, m in vars(molora.v1).items() if n.endswith("_pb2")]
    return [service.full_name for file in files for service in file.services_by_name.values()]


def test_f102_auth_table_names_every_method() -> None:
    chassis = ["grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"]
    assert len(services()) == 3
    check_auth_table([*services(), *chassis], TABLES)
    assert METRICS_AUTH == {"GET /metrics": Role.METRICS}
    pool = descriptor_pool.Default()
    for name in services():
        for method in pool.FindServiceByName(name).methods:
            without = {key: role for key, role in TABLES.items() if key != f"/{name}/{method.name}"}
            with pytest.raises(ValueError, match=f"/{name}/{method.name}"):
                check_auth_table([*services(), *chassis], without)


async def test_f102_unlisted_method(door: Callable[..., Any]) -> None:
    """Also without tokens: what is not in the table is not served."""
    opened: Door = await door()
    for method in ("/grpc.channelz.v1.Channelz/GetServers", f"/{EXECUTOR}/Nothing", "/x/y"):
        assert await code_of(opened.address, method) is grpc.StatusCode.UNIMPLEMENTED
    assert await code_of(opened.address, f"/{EXECUTOR}/ListExperts") is ADMITTED


def test_f103_plaintext(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--host", "--metrics-host"):
        with pytest.raises(SystemExit) as left:
            parse_settings(RouterSettings, [flag, "0.0.0.0"], "molora serve router")
        assert left.value.code == 2
        assert "0.0.0.0 is beyond loopback without TLS" in capsys.readouterr().err
    with (
        pytest.raises(InvalidArgumentError, match="plaintext"),
        Molora(executor="192.0.2.1:50052", token="secret") as client,
    ):
        client.experts()


async def test_f104_mutual_tls(door: Callable[..., Any], tmp_path: Path) -> None:
    authority, stranger = Authority(), Authority()
    files = write_server(tmp_path, authority.issue(), authority.pem)
    closed: Door = await door(files)
    method = f"/{EXECUTOR}/ListExperts"
    ca, client = authority.pem, authority.issue("agent")
    refused = {
        "none": trusting(ca),
        "wrong CA": trusting(ca, stranger.issue("agent")),
        "expired": trusting(ca, authority.issue("agent", expired=True)),
        "server of another CA": trusting(stranger.pem, client),
    }
    for credentials in refused.values():
        code = await code_of(closed.address, method, credentials=credentials)
        assert code is grpc.StatusCode.UNAVAILABLE
        assert closed.reached == 0
    plain = await code_of(closed.address, method)
    assert (plain, closed.reached) == (grpc.StatusCode.UNAVAILABLE, 0)
    await code_of(closed.address, method, credentials=trusting(ca, client))
    assert closed.reached == 1
    # Revoked: its CA is taken out of the file.
    assert files.client_ca is not None
    replace(files.client_ca, stranger.pem)
    await code_of(closed.address, method, credentials=trusting(ca, client))
    assert closed.reached == 1
    wrong_name: Door = await door(write_server(tmp_path, authority.issue("elsewhere.test")))
    code = await code_of(wrong_name.address, method, credentials=trusting(ca))
    assert (code, wrong_name.reached) == (grpc.StatusCode.UNAVAILABLE, 0)


def handshake(port: int, version: ssl.TLSVersion) -> str | None:
    """The version that was agreed on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain) as secured,
    ):
        return secured.version()


async def test_f105_old_tls(door: Callable[..., Any], tmp_path: Path) -> None:
    """Rotation is tests/unit/service_chassis/test_tls.py."""
    closed: Door = await door(write_server(tmp_path, Authority().issue()))
    for old in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        with pytest.raises(OSError, match=r"version|alert|protocol|reset|EOF"):
            await asyncio.to_thread(handshake, closed.port, old)
    assert await asyncio.to_thread(handshake, closed.port, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"


async def test_f106_auth_before_parsing(
    door: Callable[..., Any], tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[bytes] = []
    real = executor_pb2.GenerateRequest

    class Watching:
        @staticmethod
        def FromString(data: bytes) -> Any:
            parsed.append(data)
            return real.FromString(data)

    # The stubs look the class up when the servicer is registered.
    monkeypatch.setattr(executor_pb2, "GenerateRequest", Watching)
    closed: Door = await door(tokens_file=tokens)
    method = f"/{EXECUTOR}/Generate"
    for metadata in ((), bearer("wrong"), bearer("metrics-token")):
        code = await code_of(closed.address, method, metadata, body=b"\xff\xff")
        assert code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    assert parsed == []
    await code_of(closed.address, method, bearer("agent-token"), body=b"")
    assert parsed == [b""]


def test_f117_names_in_logs(capsys: pytest.CaptureFixture[str]) -> None:
    before = structlog.get_config()
    hostile = "a\r\n\x1b[31m\0{}%s\u2028" + "n" * 1_000_000
    hooks = (sys.excepthook, threading.excepthook, logging.getLogger().handlers)
    try:
        configure_logging("debug", "test")
        structlog.get_logger().info("event", name=hostile, **{"%s": hostile})
    finally:
        sys.excepthook, threading.excepthook, logging.getLogger().handlers = hooks
        logging.captureWarnings(False)
        structlog.configure(**before)
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["name"] == hostile
    assert line.isprintable()


async def test_f120_closed_labels(door: Callable[..., Any]) -> None:
    """Random names, over the wire."""
    opened: Door = await door()

    def series() -> int:
        return sum(len(metric.samples) for metric in opened.metrics.registry.collect())

    dice = random.Random(0)
    # A call is counted after its caller has the answer: before the next one's.
    for _ in range(2):
        await code_of(opened.address, "/some/name")
    before = series()
    async with grpc.aio.insecure_channel(opened.address) as channel:
        for _ in range(300):
            method = f"/{dice.random()}/{dice.random()}"
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary(method)(b"", timeout=10)
    assert series() == before


def test_f119_core_dumps() -> None:
    """A dump would hold screens; tracebacks without values are tests of the chassis' log."""
    program = Path(__file__).parents[1] / "unit/service_chassis/server_program.py"
    with subprocess.Popen(
        [sys.executable, str(program), "watching"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert "listening" in process.stdout.readline()
            limits = Path(f"/proc/{process.pid}/limits").read_text()
        finally:
            process.terminate()
    [line] = [line for line in limits.splitlines() if line.startswith("Max core file size")]
    assert line.split()[4] == "0"


@pytest.mark.parametrize("settings", [ExecutorSettings, RouterSettings])
def test_f122_secrets_are_in_files(settings: type[ServerSettings]) -> None:
    """A flag or a variable shows what it holds to other users of the machine."""
    for name, info in settings.model_fields.items():
        assert info.annotation is not SecretStr
        if any(word in name for word in ("token", "key", "secret", "password")):
            named = name.endswith(("_file", "_key")) or "_tokens" in name
            assert named, name
            assert info.annotation in (Path | None, int, int | None), name
