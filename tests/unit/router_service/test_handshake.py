"""The router serves while, and only while, the executor is the one the bundle was made for."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest

from router_service.core import ExpertEntry, Features
from router_service.errors import Aborted, FailedPrecondition, Unavailable
from router_service.executor_client import ExecutorClient
from router_service.handshake import Handshake
from tests.support import router_bundle
from tests.support.stub_executor import StubExecutor, free_address, serving

CALENDAR, CHART, CLAIM = router_bundle.EXPERTS
OTHER = ExpertEntry("other", "0" * 64)


class Watch:
    """A running handshake, and every change of health it told."""

    def __init__(self, address: str) -> None:
        self.client = ExecutorClient(address, 2**20, 10.0)
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
async def watching(address: str) -> AsyncIterator[Watch]:
    watch = Watch(address)
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
            await watch.until_reason(None)
        assert watch.told[-1] is True


async def test_a_server_that_is_no_executor() -> None:
    import grpc

    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with watching(f"127.0.0.1:{port}") as watch:
        await watch.until_reason("EXECUTOR_REFUSED")
    await server.stop(None)


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
