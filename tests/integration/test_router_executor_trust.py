"""A router before an executor that asks for TLS, client certificates and tokens."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import re
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from executor_service.settings import ExecutorSettings
from molora.v1 import executor_pb2, types_pb2
from molora_client import AsyncMolora, FailedPreconditionError, UnavailableError
from router_service.settings import RouterSettings
from service_chassis.settings import parse_settings
from service_chassis.tls import Tls
from service_chassis.upstream import read_token
from tests.support import router_bundle
from tests.support.certificates import Authority, replace, write_server
from tests.support.processes import command, environment
from tests.support.stub_executor import StubExecutor, serving

SCREEN = b"screen"
PROMPT = "Click December 3 in the calendar"
TOKEN, NEXT_TOKEN = "s3cret-of-the-router", "s3cret-of-tomorrow"


@dataclass
class Place:
    """The executor, and the files that the router is given."""

    folder: Path
    authority: Authority
    executor: StubExecutor

    def write(self, name: str, content: bytes) -> str:
        replace(self.folder / name, content)
        return str(self.folder / name)

    @property
    def flags(self) -> list[str]:
        """All that the executor asks for."""
        given = {"tls-ca": "ca.pem", "tls-cert": "cert.pem", "tls-key": "key.pem"}
        given["token-file"] = "token"
        return [f"--executor-{name}={self.folder / file}" for name, file in given.items()]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    authority, executor = Authority(), StubExecutor()
    files = write_server(tmp_path, authority.issue(), authority.pem)
    made = Place(tmp_path, authority, executor)
    tokens = Path(made.write("tokens", f"infer {TOKEN}\n".encode()))
    pair = authority.issue("router.example")
    made.write("ca.pem", authority.pem)
    made.write("cert.pem", pair.certificate)
    made.write("key.pem", pair.key)
    made.write("token", TOKEN.encode())
    router_bundle.write_bundle(tmp_path / "bundle")
    async with serving(executor, tls=files, tokens_file=tokens) as address:
        executor.address = address
        yield made


@dataclass
class Router:
    """A router that runs as a process of its own."""

    address: str
    log_file: Path

    @property
    def log(self) -> list[dict[str, Any]]:
        """Its own lines; grpc writes some that are no JSON."""
        lines = self.log_file.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    async def until_said(self, event: str, **facts: Any) -> dict[str, Any]:
        """The first log line of an event with these facts."""
        for _ in range(600):
            for entry in self.log:
                if entry["event"] == event and facts.items() <= entry.items():
                    return entry
            await asyncio.sleep(0.05)
        raise AssertionError(self.log_file.read_text())


@contextlib.asynccontextmanager
async def running(place: Place) -> AsyncIterator[Router]:
    given = ["--executor", place.executor.address, "--bundle", str(place.folder / "bundle")]
    given += ["--executor-check-s", "0.1", *place.flags]
    log_file = place.folder / "router.log"
    with log_file.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command("router_service", *given),
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            env=environment(None),
        )
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        yield Router(line.removeprefix("router listening on ").strip(), log_file)
    finally:
        process.terminate()
        await process.communicate()
    said = log_file.read_text()
    for secret in (TOKEN, NEXT_TOKEN, "PRIVATE KEY", "BEGIN CERTIFICATE"):
        assert secret not in said


async def health(address: str) -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
    return int(reply.status)


async def until_routed(client: AsyncMolora) -> None:
    for _ in range(200):
        with contextlib.suppress(FailedPreconditionError, UnavailableError):
            assert (await client.route(PROMPT, SCREEN)).gates == {"calendar": 1.0}
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it never routed")


async def test_all_of_it_may_change_while_it_runs(place: Place) -> None:
    async with running(place) as router, AsyncMolora(router.address) as client:
        await router.until_said("executor matches the bundle")
        await until_routed(client)
        assert (await client.predict(PROMPT, SCREEN)).text == "click"
        place.write("tokens", f"infer {NEXT_TOKEN}\n".encode())
        refused = await router.until_said("not serving", reason="EXECUTOR_REFUSED")
        assert "--executor-token-file" in refused["remedy"]
        place.write("token", NEXT_TOKEN.encode())
        other = Authority()
        write_server(place.folder, other.issue(), other.pem)
        place.write("ca.pem", other.pem)
        pair = other.issue("router.example")
        place.write("cert.pem", pair.certificate)
        place.write("key.pem", pair.key)
        await until_routed(client)
        changed = {entry["what"] for entry in router.log if "what" in entry}
        assert changed == {"upstream tls", "upstream token"}


async def test_what_is_wrong_stops_serving_and_the_log_says_what_to_do(place: Place) -> None:
    place.write("ca.pem", Authority().pem)
    place.write("token", b"wrong")
    async with running(place) as router, AsyncMolora(router.address, timeout_s=5) as client:
        said = await router.until_said("not serving", reason="EXECUTOR_UNTRUSTED")
        assert "--executor-tls-ca" in said["remedy"]
        assert await health(router.address) == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(FailedPreconditionError) as caught:
            await client.route(PROMPT, SCREEN)
        assert caught.value.reason == "EXECUTOR_UNTRUSTED"
        assert place.executor.address not in str(caught.value)
        place.write("ca.pem", place.authority.pem)
        said = await router.until_said("not serving", reason="EXECUTOR_REFUSED")
        assert said["code"] == "UNAUTHENTICATED"
        assert "--executor-token-file" in said["remedy"]
        assert await health(router.address) == health_pb2.HealthCheckResponse.NOT_SERVING
        assert place.executor.seen == []
        place.write("token", TOKEN.encode())
        await until_routed(client)


async def test_doctor_asks_the_executor_as_the_router_does(place: Place) -> None:
    """A router on trial, with its own certificate and token, before an executor that runs."""
    gates = types_pb2.Gates(weights={"calendar": 1.0})
    done = executor_pb2.Completed(applied=types_pb2.Applied(gates=gates))
    place.executor.events = [executor_pb2.GenerateResponse(completed=done)]
    flags = ["--executor", place.executor.address, "--bundle", str(place.folder / "bundle")]
    flags += ["--port", "0", "--metrics-port", "0", *place.flags]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "clients.cli.app", "doctor", "router", "--json", "--", *flags),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(None),
    )
    out, err = await asyncio.wait_for(process.communicate(), 120)
    found = {one["check"]: (one["state"], one["found"]) for one in json.loads(out)["checks"]}
    assert process.returncode == 0, (found, err)
    assert found["router: executor"][0] == "ok"
    assert found["router: starts"] == ("ok", "on trial, with everything loaded")
    assert found["golden request"][1].startswith("calendar answers twice the same")
    assert TOKEN not in out.decode() + err.decode()


def test_the_files_and_flags_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands make what the two commands after them ask for."""
    text = (Path(__file__).parents[2] / "docs/OPERATIONS.md").read_text()
    section = text.split("### Between router and executor")[1].split("\n### ")[0]
    make, serve = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    made = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", make], cwd=tmp_path, capture_output=True, check=False
    )
    assert made.returncode == 0, made.stderr
    monkeypatch.chdir(tmp_path)
    kinds = {"executor": ExecutorSettings, "router": RouterSettings}
    found: dict[str, Any] = {}
    for line in serve.replace("\\\n", "").splitlines():
        molora, verb, service, *flags = line.split()
        assert (molora, verb) == ("molora", "serve")
        found[service] = parse_settings(kinds[service], flags, service)
    client = found["router"].executor_files
    assert None not in dataclasses.astuple(client)
    [token] = found["executor"].tokens_file.read_text().split()[1:]
    assert read_token(client.token) == token
    server = Tls.read(found["executor"].tls_files)
    asking = ssl.create_default_context(cafile=client.ca)
    asking.load_cert_chain(client.certificate, client.key)
    host = found["router"].executor.partition(":")[0]
    assert shaken(asking, server.context, host) == "router"


def shaken(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> str:
    """Who the server says has called, after a handshake that both sides have checked."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server, server_hostname=name)
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (asking, answering, asking, answering):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    facts: Any = answering.getpeercert()
    return dict(part[0] for part in facts["subject"])["commonName"]
