"""What doctor says of the router's way to an executor with TLS, client certificates and tokens."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from clients.cli import access
from clients.cli.findings import Finding, State
from router_service.settings import RouterSettings
from tests.support import router_bundle
from tests.support.addresses import free_address
from tests.support.certificates import Authority, write_server
from tests.support.stub_executor import StubExecutor, serving

TOKEN = "s3cret-of-the-router"


@pytest.fixture
async def executor(tmp_path: Path) -> AsyncIterator[StubExecutor]:
    stub, authority = StubExecutor(), Authority()
    tls = write_server(tmp_path, authority.issue(), authority.pem)
    pair = authority.issue("router.example")
    contents = {"ca": authority.pem, "cert": pair.certificate, "key": pair.key}
    contents |= {"token": TOKEN.encode(), "tokens": f"infer {TOKEN}\n".encode()}
    contents |= {"other-ca": Authority().pem, "other-token": b"unknown"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o600)
    router_bundle.write_bundle(tmp_path / "bundle")
    async with serving(stub, tls=tls, tokens_file=tmp_path / "tokens") as address:
        stub.address = address
        yield stub


def settings(folder: Path, address: str, **changes: Path | None) -> RouterSettings:
    given: dict[str, Path | None] = {
        "executor_tls_ca": folder / "ca",
        "executor_tls_cert": folder / "cert",
        "executor_tls_key": folder / "key",
        "executor_token_file": folder / "token",
    }
    return RouterSettings(executor=address, bundle=folder / "bundle", **{**given, **changes})


async def asked(router: RouterSettings) -> Finding:
    """What the check of the executor finds; the stub answers on this loop meanwhile."""

    def ask() -> Finding:
        with access.as_router(router, 3) as client:
            return access.check_executor(client, router)

    return await asyncio.to_thread(ask)


async def test_an_executor_that_lets_the_router_in(executor: StubExecutor, tmp_path: Path) -> None:
    found = await asked(settings(tmp_path, executor.address))
    assert found.state is State.OK
    assert TOKEN not in str(found)


@pytest.mark.parametrize(
    ("changes", "code", "remedy"),
    [
        ({"executor_token_file": "other-token"}, 64 + 16, "--executor-token-file"),
        ({"executor_token_file": None}, 64 + 16, "--executor-token-file"),
        ({"executor_tls_ca": "other-ca"}, 64 + 14, "--executor-tls-ca"),
        ({"executor_tls_cert": None, "executor_tls_key": None}, 64 + 14, "--executor-tls-cert"),
    ],
)
async def test_what_the_router_lacks(
    executor: StubExecutor, tmp_path: Path, changes: dict[str, str | None], code: int, remedy: str
) -> None:
    given = {key: tmp_path / name if name else None for key, name in changes.items()}
    found = await asked(settings(tmp_path, executor.address, **given))
    assert (found.state, found.exit_code) == (State.FAILED, code)
    assert remedy in found.remedy


async def test_nobody_there(executor: StubExecutor, tmp_path: Path) -> None:
    found = await asked(settings(tmp_path, free_address()))
    assert (found.state, found.exit_code) == (State.FAILED, 64 + 14)
    assert "start it" in found.remedy


async def test_another_expert_than_the_bundle_was_made_for(
    executor: StubExecutor, tmp_path: Path
) -> None:
    calendar, *others = router_bundle.EXPERTS
    executor.experts = (dataclasses.replace(calendar, digest="8" * 64), *others)
    found = await asked(settings(tmp_path, executor.address))
    assert (found.state, found.exit_code) == (State.FAILED, 3)
    assert found.found == "EXPERT_CHANGED calendar"
    assert "export a router" in found.remedy


def test_where_screens_go_in_plaintext() -> None:
    assert access.check_executor_tls(RouterSettings()).state is State.OK
    found = access.check_executor_tls(RouterSettings(executor="gpu.example:50052"))
    assert (found.state, "gpu.example" in found.found) == (State.WARNING, True)
    assert "--executor-tls-ca" in found.remedy


def test_the_certificate_of_the_router(tmp_path: Path) -> None:
    authority = Authority()
    (tmp_path / "ca").write_bytes(authority.pem)
    pairs = {"good": authority.issue("router.example"), "old": authority.issue(expired=True)}
    found = {}
    for name, pair in pairs.items():
        (tmp_path / "cert").write_bytes(pair.certificate)
        (tmp_path / "key").write_bytes(pair.key)
        given = settings(tmp_path, "gpu.example:50052", executor_token_file=None)
        found[name] = access.check_executor_tls(given)
    assert found["good"].state is State.OK
    assert found["good"].found.startswith("for router.example, until 3000-")
    assert (found["old"].state, found["old"].exit_code) == (State.FAILED, 2)
    assert "expired" in found["old"].found
    alone = {"executor_tls_cert": None, "executor_tls_key": None, "executor_token_file": None}
    found["none"] = access.check_executor_tls(settings(tmp_path, "gpu.example:1", **alone))
    assert found["none"].found == "on; the router shows no certificate"


def test_who_can_read_the_token(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    given = RouterSettings(executor_token_file=path)
    for mode, state in ((0o600, State.OK), (0o644, State.WARNING)):
        path.chmod(mode)
        found = access.check_executor_token(given)
        assert found.state is state
        assert TOKEN not in found.found
    assert access.check_executor_token(RouterSettings()).found == "none"
