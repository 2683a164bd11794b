"""The router serves while, and only while, the executor is the one the bundle was made for."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
import structlog

from router_service.core import ExpertEntry, Features
from router_service.errors import Aborted, FailedPrecondition, Unavailable
from router_service.executor_client import ExecutorClient
from router_service.handshake import Handshake
from service_chassis.upstream import UpstreamFiles
from tests.support import router_bundle
from tests.support.addresses import free_address
from tests.support.certificates import Authority, write_server
from tests.support.stub_executor import StubExecutor, serving

CALENDAR, CHART, CLAIM = router_bundle.EXPERTS
OTHER = ExpertEntry("other", "0" * 64)


class Watch:
    """A running handshake, and every change of health it told."""

    def __init__(self, address: str, files: UpstreamFiles) -> None:
        self.client = ExecutorClient(address, files, 2**20, 10.0)
        self.handshake = Handshake(router_bundle.manifest(b""), self.client.info, interval_s=0.02)
        self.told: list[bool] = []
        self.task = asyncio.ensure_future(self.handshake.run(self.told.append))

    async def until(self, condition: Callable[[], bool]) -> None:
        async def wait() -> None:
            while not condition():  # noqa: ASYNC110 (what is watched has no event)
                await asyncio.sleep(0.005)

        await asyncio.wait_for(wait(), 10)

    async def until_reason(self, reason: str | None) -> None:
        def reached() -> bool:
            problem = self.handshake.problem
            return (problem.reason if problem else None) == reason

        await self.until(reached)


@contextlib.asynccontextmanager
async def watching(
    address: str,
    files: UpstreamFiles = UpstreamFiles(),  # noqa: B008 (it is frozen)
) -> AsyncIterator[Watch]:
    watch = Watch(address, files)
    try:
        yield watch
    finally:
        watch.task.cancel()
        await asyncio.gather(watch.task, return_exceptions=True)
        await watch.client.close()


def features(stub: StubExecutor) -> Features:
    empty = np.zeros(0, np.float32)
    return Features(empty, empty, stub.feature_spec, stub.model, stub.expert_set, "context")


async def test_a_matching_executor() -> None:
    stub = StubExecutor()
    async with serving(stub) as address, watching(address) as watch:
        await watch.until_reason(None)
        assert watch.told == [True]
        assert watch.handshake.require().expert_set == "set-1"


async def test_more_experts_are_allowed() -> None:
    stub = StubExecutor()
    stub.experts = (OTHER, CALENDAR, CHART, dataclasses.replace(OTHER, name="x"), CLAIM)
    async with serving(stub) as address, watching(address) as watch:
        await watch.until_reason(None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"experts": (CALENDAR, CLAIM, CHART)}, "EXPERT_ORDER"),
        ({"experts": (CALENDAR, CHART)}, "EXPERT_MISSING"),
        ({"experts": ()}, "EXPERT_MISSING"),
        (
            {"experts": (CALENDAR, dataclasses.replace(CHART, digest="1" * 64), CLAIM)},
            "EXPERT_CHANGED",
        ),
        (
            # The names are right and in order, the contents are swapped.
            {
                "experts": (
                    dataclasses.replace(CALENDAR, digest=CHART.digest),
                    dataclasses.replace(CHART, digest=CALENDAR.digest),
                    CLAIM,
                )
            },
            "EXPERT_CHANGED",
        ),
        ({"feature_spec": "2" * 64}, "FEATURE_SPEC_MISMATCH"),
        ({"model": "3" * 64}, "MODEL_MISMATCH"),
    ],
)
async def test_a_difference_stops_serving_until_it_is_gone(
    change: dict[str, object], reason: str
) -> None:
    stub = StubExecutor()
    before = {name: getattr(stub, name) for name in change}
    for name, value in change.items():
        setattr(stub, name, value)
    async with serving(stub) as address, watching(address) as watch:
        await watch.until_reason(reason)
        with pytest.raises(FailedPrecondition) as caught:
            watch.handshake.require()
        assert caught.value.reason == reason
        assert watch.told == [False]
        for name, value in before.items():
            setattr(stub, name, value)
        await watch.until_reason(None)
        assert watch.told == [False, True]


async def test_an_executor_that_comes_and_goes() -> None:
    address = free_address()
    async with watching(address) as watch:
        await asyncio.sleep(0.05)
        with pytest.raises(Unavailable):
            watch.handshake.require()
        async with serving(StubExecutor(), int(address.rpartition(":")[2])):
            await watch.until_reason(None)
        await watch.until_reason("EXECUTOR_UNREACHABLE")
        with pytest.raises(Unavailable):
            watch.handshake.require()
        async with serving(StubExecutor(), int(address.rpartition(":")[2])):
            await watch.until(lambda: watch.told[-1] is True)


async def test_a_server_that_is_no_executor() -> None:
    import grpc

    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with watching(f"127.0.0.1:{port}") as watch:
        await watch.until_reason("EXECUTOR_REFUSED")
    await server.stop(None)


class TestTrust:
    """An executor with TLS, client certificates and tokens; and a router that lacks something."""

    @pytest.fixture
    async def address(self, tmp_path: Path) -> AsyncIterator[str]:
        authority = Authority()
        tls = write_server(tmp_path, authority.issue(), authority.pem)
        pair = authority.issue("router.example")
        contents = {"ca": authority.pem, "cert": pair.certificate, "key": pair.key}
        contents |= {"token": b"of-the-router", "metrics": b"of-another", "wrong": b"unknown"}
        contents["other-ca"] = Authority().pem
        for name, content in contents.items():
            (tmp_path / name).write_bytes(content)
        tokens = tmp_path / "tokens"
        tokens.write_text("infer of-the-router\nmetrics of-another\n")
        async with serving(StubExecutor(), tls=tls, tokens_file=tokens) as address:
            yield address

    @pytest.mark.parametrize(
        ("files", "reason", "remedy"),
        [
            ("ca cert key token", None, ""),
            ("other-ca cert key token", "EXECUTOR_UNTRUSTED", "--executor-tls-ca"),
            ("ca cert key wrong", "EXECUTOR_REFUSED", "one that it knows into"),
            ("ca cert key metrics", "EXECUTOR_REFUSED", "role infer"),
            ("ca cert key -", "EXECUTOR_REFUSED", "--executor-token-file"),
            ("ca - - token", "EXECUTOR_UNREACHABLE", "--executor-tls-cert"),
            ("- - - token", "EXECUTOR_UNREACHABLE", "--executor-tls-ca"),
        ],
    )
    async def test_what_it_lacks_is_said(
        self, address: str, tmp_path: Path, files: str, reason: str | None, remedy: str
    ) -> None:
        paths = [None if name == "-" else tmp_path / name for name in files.split()]
        with structlog.testing.capture_logs() as logs:
            async with watching(address, UpstreamFiles(*paths)) as watch:
                await watch.until(lambda: bool(watch.told))
                problem = watch.handshake.problem
        assert (problem.reason if problem else None) == reason
        assert watch.told == [reason is None]
        # The executor runs in this process, and logs its calls.
        [entry] = [entry for entry in logs if entry["event"] != "request"]
        assert remedy in entry.get("remedy", "")
        assert not any(secret in str(logs) for secret in ("of-", "unknown", "127.0.0.1"))

    async def test_a_name_that_is_not_in_the_certificate(self, tmp_path: Path) -> None:
        authority = Authority()
        tls = write_server(tmp_path, authority.issue("gpu.example"))
        (tmp_path / "ca").write_bytes(authority.pem)
        async with (
            serving(StubExecutor(), tls=tls) as address,
            watching(address, UpstreamFiles(ca=tmp_path / "ca")) as watch,
        ):
            await watch.until_reason("EXECUTOR_UNTRUSTED")


class TestConfirm:
    """The loop sleeps here, so that only `confirm` looks."""

    @pytest.fixture
    async def asleep(self) -> AsyncIterator[tuple[StubExecutor, Watch]]:
        stub = StubExecutor()
        async with serving(stub) as address, watching(address) as watch:
            await watch.until_reason(None)
            watch.task.cancel()
            yield stub, watch

    async def test_the_same_executor(self, asleep: tuple[StubExecutor, Watch]) -> None:
        stub, watch = asleep
        await watch.handshake.confirm(features(stub))

    async def test_another_expert_was_loaded(self, asleep: tuple[StubExecutor, Watch]) -> None:
        stub, watch = asleep
        stub.experts, stub.expert_set = (*stub.experts, OTHER), "set-2"
        await watch.handshake.confirm(features(stub))
        assert watch.handshake.require().expert_set == "set-2"

    async def test_an_expert_was_replaced(self, asleep: tuple[StubExecutor, Watch]) -> None:
        stub, watch = asleep
        stub.experts = (CALENDAR, dataclasses.replace(CHART, digest="1" * 64), CLAIM)
        stub.expert_set = "set-2"
        with pytest.raises(FailedPrecondition) as caught:
            await watch.handshake.confirm(features(stub))
        assert caught.value.reason == "EXPERT_CHANGED"
        assert watch.told == [True, False]

    async def test_the_set_moved_on_in_between(self, asleep: tuple[StubExecutor, Watch]) -> None:
        stub, watch = asleep
        old = dataclasses.replace(features(stub), expert_set="set-0")
        with pytest.raises(Aborted) as caught:
            await watch.handshake.confirm(old)
        assert caught.value.reason == "EXECUTOR_CHANGED"

    @pytest.mark.parametrize("part", ["feature_spec", "model"])
    async def test_other_features(self, asleep: tuple[StubExecutor, Watch], part: str) -> None:
        stub, watch = asleep
        setattr(stub, part, "9" * 64)
        with pytest.raises(FailedPrecondition):
            await watch.handshake.confirm(features(stub))
