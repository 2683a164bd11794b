"""A real router server over a real socket, against an executor that answers without a model."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from molora.v1 import executor_pb2, router_pb2, router_pb2_grpc, types_pb2
from router_service import audit
from router_service import server as router_server
from router_service.bundle import load_bundle
from router_service.errors import BundleError
from router_service.head import Head
from router_service.settings import RouterSettings
from service_chassis.errors import Aborted, InvalidArgument, ResourceExhausted
from service_chassis.health import Health
from service_chassis.metrics import ServerMetrics
from service_chassis.server import build_server
from tests.support import router_bundle
from tests.support.addresses import free_address
from tests.support.stub_executor import StubExecutor, serving

PROMPT = "Click December 3 in the calendar"
Call = Callable[..., Any]


@dataclass
class Running:
    stub: router_pb2_grpc.RouterServiceStub
    health: health_pb2_grpc.HealthStub
    address: str
    registry: CollectorRegistry = dataclasses.field(default_factory=CollectorRegistry)

    async def until_serving(self, wanted: bool = True) -> None:
        status = health_pb2.HealthCheckResponse
        expected = status.SERVING if wanted else status.NOT_SERVING
        async for reply in self.health.Watch(health_pb2.HealthCheckRequest(), timeout=20):
            if reply.status == expected:
                return


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Starts routers in this loop; stops everything at the end."""
    before = structlog.get_config()
    structlog.configure(processors=[structlog.testing.LogCapture()])
    bundle = router_bundle.write_bundle(tmp_path / "router")
    async with contextlib.AsyncExitStack() as stack:

        async def start_router(executor: str, **flags: Any) -> Running:
            given = {"bundle": bundle, "executor_check_s": 0.05, **flags}
            settings = RouterSettings(executor=executor, **given)
            read = load_bundle(settings.bundle)
            metrics = ServerMetrics()
            head = Head(read.head, read.manifest)
            router = router_server.assemble(settings, read, head, metrics)
            stack.push_async_callback(router.executor.close)
            stack.callback(router.ledger.close)
            health = Health([router_server.SERVICE])
            server = build_server(
                settings,
                lambda s: router_server.register(router, s),
                [router_server.SERVICE],
                router_server.AUTH_TABLE,
                metrics,
                health,
            )
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            stack.push_async_callback(server.stop, None)
            task = asyncio.ensure_future(router_server.ready(router, health))
            stack.push_async_callback(_cancel, task)
            address = f"127.0.0.1:{port}"
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
            return Running(
                router_pb2_grpc.RouterServiceStub(channel),
                health_pb2_grpc.HealthStub(channel),
                address,
                metrics.registry,
            )

        yield start_router
    structlog.configure(**before)


@pytest.fixture
async def executor() -> AsyncIterator[StubExecutor]:
    stub = StubExecutor()
    async with serving(stub) as address:
        stub.address = address
        yield stub


@pytest.fixture
async def router(start: Call, executor: StubExecutor) -> Running:
    running: Running = await start(executor.address)
    await running.until_serving()
    return running


async def _cancel(task: asyncio.Future[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def route(text: str = PROMPT, **fields: Any) -> router_pb2.RouteRequest:
    return router_pb2.RouteRequest(
        prompt=types_pb2.Prompt(text=text), screen=types_pb2.Screen(data=b"screen"), **fields
    )


def predict(text: str = PROMPT, **fields: Any) -> router_pb2.PredictRequest:
    return router_pb2.PredictRequest(
        prompt=types_pb2.Prompt(text=text), screen=types_pb2.Screen(data=b"screen"), **fields
    )


async def failure(call: Any) -> tuple[str, str]:
    """Code and reason of a call that must fail."""

    async def finish() -> None:
        if isinstance(call, grpc.aio.UnaryStreamCall):
            async for _ in call:
                pass
        else:
            await call

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await finish()
    error = caught.value
    blob = dict(error.trailing_metadata()).get("grpc-status-details-bin", b"")
    info = error_details_pb2.ErrorInfo()
    for detail in status_pb2.Status.FromString(blob).details:
        detail.Unpack(info)
    assert "127.0.0.1" not in (error.details() or "")
    return error.code().name, info.reason


class TestRoute:
    async def test_it_names_the_expert_and_the_context(
        self, router: Running, executor: StubExecutor
    ) -> None:
        reply = await router.stub.Route(route())
        decision = reply.decision
        assert dict(decision.gates.weights) == {"calendar": 1.0}
        assert decision.reason == types_pb2.DECISION_REASON_ROUTER
        assert set(decision.probabilities) == {"calendar", "chart", "claim-window"}
        assert decision.confidence == pytest.approx(max(decision.probabilities.values()))
        assert decision.entropy > 0
        assert decision.expert_set == "set-1"
        assert decision.router_version
        assert reply.context_id == "context-1"
        assert reply.executor == executor.address
        assert reply.timings.total_ms >= reply.timings.features_ms > 0

    async def test_both_inputs_reach_the_head(
        self, router: Running, executor: StubExecutor
    ) -> None:
        executor.features = ([1.0, 1.0, 0.0, 0.0], [0.0, 100.0, 0.0])
        decision = (await router.stub.Route(route())).decision
        assert dict(decision.gates.weights) == {"chart": 1.0}

    async def test_the_request_goes_on_as_it_came(
        self, router: Running, executor: StubExecutor
    ) -> None:
        request = route(request_id="of-the-field")
        request.prompt.system = "system"
        request.prompt.history.add(role="user", text="earlier")
        call = router.stub.Route(request, metadata=(("x-request-id", "of-the-header"),))
        await call
        assert dict(await call.initial_metadata())["x-request-id"] == "of-the-header"
        assert executor.seen[0].prompt == request.prompt
        assert executor.seen[0].screen == request.screen
        assert executor.seen[0].request_id == "of-the-header"
        assert executor.request_ids == ["of-the-header"]

    async def test_override(self, router: Running) -> None:
        options = types_pb2.RoutingOptions(expert_override="chart")
        decision = (await router.stub.Route(route(options=options))).decision
        assert decision.reason == types_pb2.DECISION_REASON_MANUAL_OVERRIDE
        assert dict(decision.gates.weights) == {"chart": 1.0}

    async def test_fast_path_leaves_the_executor_alone(
        self, router: Running, executor: StubExecutor
    ) -> None:
        hint = types_pb2.AgentHint(expert="chart", confidence=0.99, fast_path=True)
        reply = await router.stub.Route(route(agent_hint=hint))
        assert reply.decision.reason == types_pb2.DECISION_REASON_AGENT_FAST_PATH
        assert dict(reply.decision.gates.weights) == {"chart": 1.0}
        assert not reply.decision.probabilities
        assert reply.context_id == ""
        assert reply.decision.expert_set == "set-1"
        assert executor.seen == []

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({"text": ""}, ("INVALID_ARGUMENT", "EMPTY_PROMPT")),
            (
                {"options": types_pb2.RoutingOptions(masked_experts=["nobody"])},
                ("NOT_FOUND", "UNKNOWN_EXPERT"),
            ),
            (
                {
                    "options": types_pb2.RoutingOptions(
                        masked_experts=["calendar", "chart", "claim-window"]
                    )
                },
                ("INVALID_ARGUMENT", "ALL_MASKED"),
            ),
            (
                {"options": types_pb2.RoutingOptions(temperature=math.nan)},
                ("INVALID_ARGUMENT", "BAD_TEMPERATURE"),
            ),
            (
                {"options": types_pb2.RoutingOptions(mode=99)},  # type: ignore[arg-type]
                ("INVALID_ARGUMENT", "UNKNOWN_MODE"),
            ),
            (
                {"agent_hint": types_pb2.AgentHint(expert="calendar", confidence=2.0)},
                ("INVALID_ARGUMENT", "BAD_CONFIDENCE"),
            ),
        ],
    )
    async def test_bad_input(
        self,
        router: Running,
        executor: StubExecutor,
        fields: dict[str, Any],
        expected: tuple[str, str],
    ) -> None:
        assert await failure(router.stub.Route(route(**fields))) == expected
        assert await failure(router.stub.Predict(predict(**fields))) == expected
        assert executor.seen == []

    async def test_no_screen(self, router: Running) -> None:
        bare = router_pb2.RouteRequest(prompt=types_pb2.Prompt(text=PROMPT))
        assert await failure(router.stub.Route(bare)) == ("INVALID_ARGUMENT", "EMPTY_SCREEN")

    @pytest.mark.parametrize(
        "features",
        [([1.0, 2.0], [1.0, 1.0, 1.0]), ([math.nan, 0, 0, 0], [1.0, 1.0, 1.0]), ([], [])],
    )
    async def test_broken_features_are_an_error_and_never_filled(
        self, router: Running, executor: StubExecutor, features: tuple[list[float], list[float]]
    ) -> None:
        executor.features = features
        assert await failure(router.stub.Route(route())) == ("INTERNAL", "BAD_FEATURES")


class TestPredict:
    async def test_decision_then_answer(self, router: Running, executor: StubExecutor) -> None:
        request = predict(
            max_new_tokens=7,
            sampling=types_pb2.Sampling(top_k=3),
            options=types_pb2.RoutingOptions(masked_experts=["chart"]),
        )
        events = [event async for event in router.stub.Predict(request)]
        kinds = [event.WhichOneof("event") for event in events]
        assert kinds == ["decision", "delta", "delta", "completed"]
        assert events[0].context_id == "context-1"
        assert "".join(event.delta.text for event in events) == "click"
        assert events[-1].completed.usage.completion_tokens == 2
        generate = executor.seen[-1]
        assert isinstance(generate, executor_pb2.GenerateRequest)
        assert generate.screen.context_id == "context-1"
        assert generate.gates == events[0].decision.gates
        assert generate.mode == types_pb2.ROUTING_MODE_UNSPECIFIED
        assert list(generate.masked_experts) == ["chart"]
        assert generate.expert_set == "set-1"
        assert generate.max_new_tokens == 7
        assert generate.sampling.top_k == 3

    async def test_the_fast_path_sends_the_screen_itself(
        self, router: Running, executor: StubExecutor
    ) -> None:
        hint = types_pb2.AgentHint(expert="chart", confidence=1.0, fast_path=True)
        events = [event async for event in router.stub.Predict(predict(agent_hint=hint))]
        assert events[-1].HasField("completed")
        assert [type(seen).__name__ for seen in executor.seen] == ["GenerateRequest"]
        assert executor.seen[0].screen.data == b"screen"
        assert not executor.seen[0].HasField("max_new_tokens")

    async def test_an_answer_without_its_end_is_an_error(
        self, router: Running, executor: StubExecutor
    ) -> None:
        executor.events.pop()
        assert await failure(router.stub.Predict(predict())) == ("INTERNAL", "INCOMPLETE_STREAM")

    async def test_an_error_in_the_middle_is_passed_on(
        self, router: Running, executor: StubExecutor
    ) -> None:
        executor.events[-1] = Aborted("EXPERT_SET_CHANGED", "Route again.", expert_set="set-2")
        assert await failure(router.stub.Predict(predict())) == ("ABORTED", "EXPERT_SET_CHANGED")

    async def test_a_client_that_leaves_ends_the_generation(
        self, router: Running, executor: StubExecutor
    ) -> None:
        executor.delay_s = 30.0
        hint = types_pb2.AgentHint(expert="chart", confidence=1.0, fast_path=True)
        call = router.stub.Predict(predict(agent_hint=hint))
        assert (await call.read()).HasField("decision")
        while not executor.seen:  # noqa: ASYNC110 (the list has no event)
            await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.wait_for(executor.cancelled.wait(), 5)


class TestExecutorErrors:
    async def test_its_own_errors_keep_code_reason_and_retry_hint(
        self, router: Running, executor: StubExecutor
    ) -> None:
        executor.fail = InvalidArgument("UNREADABLE_SCREEN", "Capture it again.", side="left")
        assert await failure(router.stub.Route(route())) == (
            "INVALID_ARGUMENT",
            "UNREADABLE_SCREEN",
        )
        executor.fail = ResourceExhausted("QUEUE_FULL", "Retry.", retry_after_s=1.5)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await router.stub.Route(route())
        blob = dict(caught.value.trailing_metadata())["grpc-status-details-bin"]
        retry = error_details_pb2.RetryInfo()
        assert any(d.Unpack(retry) for d in status_pb2.Status.FromString(blob).details)
        assert retry.retry_delay.ToMilliseconds() == 1500

    async def test_a_slow_executor_costs_the_deadline_and_no_more(
        self, router: Running, executor: StubExecutor
    ) -> None:
        executor.delay_s = 30.0
        started = asyncio.get_running_loop().time()
        # On a busy machine the caller's own clock may be first, and states no reason.
        code, _ = await failure(router.stub.Route(route(), timeout=0.5))
        assert code == "DEADLINE_EXCEEDED"
        assert asyncio.get_running_loop().time() - started < 1.5

    async def test_a_slow_generation_costs_the_deadline_and_no_more(
        self, router: Running, executor: StubExecutor
    ) -> None:
        hint = types_pb2.AgentHint(expert="chart", confidence=1.0, fast_path=True)
        executor.delay_s = 30.0
        started = asyncio.get_running_loop().time()
        call = router.stub.Predict(predict(agent_hint=hint), timeout=0.5)
        assert (await failure(call))[0] == "DEADLINE_EXCEEDED"
        assert asyncio.get_running_loop().time() - started < 1.5

    async def test_an_executor_that_dies_while_it_is_asked(self, start: Call) -> None:
        stub = StubExecutor()
        async with serving(stub) as address:
            router = await start(address)
            await router.until_serving()
            stub.delay_s = 30.0
            started = asyncio.get_running_loop().time()
            call = router.stub.Route(route(), timeout=10)
            while not stub.seen:  # noqa: ASYNC110 (the list has no event)
                await asyncio.sleep(0.01)
        assert await failure(call) == ("UNAVAILABLE", "EXECUTOR_UNREACHABLE")
        assert asyncio.get_running_loop().time() - started < 5

    async def test_the_longest_call_without_a_deadline(
        self, start: Call, executor: StubExecutor
    ) -> None:
        router = await start(executor.address, executor_call_max_s=0.2)
        await router.until_serving()
        executor.delay_s = 30.0
        expected = ("DEADLINE_EXCEEDED", "EXECUTOR_TIMEOUT")
        assert await failure(router.stub.Route(route())) == expected


class TestHandshake:
    async def test_executor_down_is_unavailable_and_gives_no_gates(self, start: Call) -> None:
        address = free_address()
        router = await start(address)
        expected = ("UNAVAILABLE", "EXECUTOR_UNREACHABLE")
        assert await failure(router.stub.Route(route())) == expected
        assert await failure(router.stub.Predict(predict())) == expected
        info = await router.stub.GetRouterInfo(router_pb2.GetRouterInfoRequest())
        assert (info.serving, info.not_serving_reason) == (False, "EXECUTOR_UNREACHABLE")
        reply = await router.health.Check(health_pb2.HealthCheckRequest())
        assert reply.status == health_pb2.HealthCheckResponse.NOT_SERVING
        async with serving(StubExecutor(), int(address.rpartition(":")[2])):
            await router.until_serving()
            assert (await router.stub.Route(route())).context_id == "context-1"
        await router.until_serving(False)
        assert await failure(router.stub.Route(route())) == expected

    async def test_swapped_order(self, start: Call) -> None:
        stub = StubExecutor()
        stub.experts = tuple(reversed(router_bundle.EXPERTS))
        async with serving(stub) as address:
            router = await start(address)
            await self._is_refused(router, "EXPERT_ORDER")

    async def test_other_feature_spec(self, start: Call) -> None:
        stub = StubExecutor()
        stub.feature_spec = "7" * 64
        async with serving(stub) as address:
            router = await start(address)
            await self._is_refused(router, "FEATURE_SPEC_MISMATCH")
            assert stub.seen == []

    async def test_an_expert_replaced_while_serving(
        self, router: Running, executor: StubExecutor
    ) -> None:
        calendar, *others = router_bundle.EXPERTS
        executor.experts = (dataclasses.replace(calendar, digest="8" * 64), *others)
        executor.expert_set = "set-2"
        expected = ("FAILED_PRECONDITION", "EXPERT_CHANGED")
        assert await failure(router.stub.Route(route())) == expected
        await router.until_serving(False)

    async def test_an_expert_added_while_serving(
        self, router: Running, executor: StubExecutor
    ) -> None:
        extra = dataclasses.replace(router_bundle.EXPERTS[0], name="extra", digest="8" * 64)
        executor.experts, executor.expert_set = (*router_bundle.EXPERTS, extra), "set-2"
        assert (await router.stub.Route(route())).decision.expert_set == "set-2"

    async def _is_refused(self, router: Running, reason: str) -> None:
        for _ in range(200):
            found = await failure(router.stub.Route(route()))
            if found != ("UNAVAILABLE", "EXECUTOR_UNREACHABLE"):  # before the first look
                break
            await asyncio.sleep(0.01)
        assert found == ("FAILED_PRECONDITION", reason)
        reply = await router.health.Check(health_pb2.HealthCheckRequest())
        assert reply.status == health_pb2.HealthCheckResponse.NOT_SERVING
        info = await router.stub.GetRouterInfo(router_pb2.GetRouterInfoRequest())
        assert (info.serving, info.not_serving_reason) == (False, reason)


class TestInfo:
    async def test_it_states_the_bundle(self, router: Running) -> None:
        info = await router.stub.GetRouterInfo(router_pb2.GetRouterInfoRequest())
        assert info.serving
        assert info.expert_set == "set-1"
        assert info.feature_spec == router_bundle.SPEC.digest
        assert [(e.name, e.digest, e.generation) for e in info.experts] == [
            (e.name, e.digest, 1) for e in router_bundle.EXPERTS
        ]
        assert info.mode == types_pb2.ROUTING_MODE_TOP1
        assert info.mode_reason == "for tests"
        assert set(info.thresholds) == {"agent_fast_path", "agent_accept", "agent_veto"}

    async def test_flags_go_before_the_bundle(self, start: Call, executor: StubExecutor) -> None:
        router = await start(
            executor.address, routing_mode="soft", temperature=2.0, agent_veto=0.999
        )
        await router.until_serving()
        info = await router.stub.GetRouterInfo(router_pb2.GetRouterInfoRequest())
        assert info.mode == types_pb2.ROUTING_MODE_SOFT
        assert info.mode_reason == "set by --routing-mode"
        assert (info.temperature, info.temperature_reason) == (2.0, "set by --temperature")
        assert info.thresholds["agent_veto"] == pytest.approx(0.999)
        decision = (await router.stub.Route(route())).decision
        assert len(decision.gates.weights) == 3


class TestAbstention:
    """A bundle that abstains beyond distance 5; the stub's distance is its largest |vision|."""

    FAR = ([9.0, 0.0, 0.0, 0.0], [0.0, 7.5, 0.0])

    async def router(self, start: Call, executor: StubExecutor, path: Path, **flags: Any) -> Any:
        fitted = router_bundle.write_fitted_bundle(path / "fitted")
        router = await start(executor.address, bundle=fitted, **flags)
        await router.until_serving()
        return router

    async def test_an_unknown_screen_is_an_error(
        self, start: Call, executor: StubExecutor, tmp_path: Path
    ) -> None:
        router = await self.router(start, executor, tmp_path)
        assert (await router.stub.Route(route())).decision.distance == 1.0
        executor.features = self.FAR
        expected = ("FAILED_PRECONDITION", "ABSTAINED")
        assert await failure(router.stub.Route(route())) == expected
        assert await failure(router.stub.Predict(predict())) == expected
        counted = router.registry.get_sample_value(
            "molora_router_decisions_total", {"reason": "abstained"}
        )
        assert counted == 2

    async def test_the_base_answers_and_the_decision_says_so(
        self, start: Call, executor: StubExecutor, tmp_path: Path
    ) -> None:
        router = await self.router(start, executor, tmp_path, on_abstention="base")
        executor.features = self.FAR
        events = [event async for event in router.stub.Predict(predict())]
        decision = events[0].decision
        assert decision.reason == types_pb2.DECISION_REASON_ABSTAINED
        assert decision.abstention == types_pb2.ABSTENTION_OUTCOME_BASE
        assert not decision.gates.weights
        assert decision.distance == 7.5
        generate = executor.seen[-1]
        assert generate.WhichOneof("routing") == "base_only"
        assert generate.base_only

    async def test_the_two_best_share(
        self, start: Call, executor: StubExecutor, tmp_path: Path
    ) -> None:
        router = await self.router(start, executor, tmp_path, on_abstention="top2")
        executor.features = self.FAR
        decision = (await router.stub.Route(route())).decision
        assert decision.reason == types_pb2.DECISION_REASON_ABSTAINED
        assert decision.abstention == types_pb2.ABSTENTION_OUTCOME_TOP2
        assert set(decision.gates.weights) == {"calendar", "chart"}

    async def test_the_info_states_it_all(
        self, start: Call, executor: StubExecutor, tmp_path: Path
    ) -> None:
        router = await self.router(start, executor, tmp_path, abstention_distance=9.0)
        info = await router.stub.GetRouterInfo(router_pb2.GetRouterInfoRequest())
        assert info.thresholds["abstention"] == 9.0
        assert info.threshold_reasons["abstention"] == "set by --abstention-distance"
        assert info.abstention == types_pb2.ABSTENTION_OUTCOME_ERROR
        assert info.agent.reliability == 0.75
        executor.features = self.FAR
        assert (await router.stub.Route(route())).decision.distance == 7.5

    async def test_a_distance_that_nothing_measures_is_refused(
        self, start: Call, executor: StubExecutor
    ) -> None:
        with pytest.raises(BundleError, match="--abstention-distance needs a head"):
            await start(executor.address, abstention_distance=9.0)


class TestAudit:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "audit.jsonl"

    @pytest.fixture
    async def router(self, start: Call, executor: StubExecutor, path: Path) -> Running:
        running: Running = await start(executor.address, audit_file=path)
        await running.until_serving()
        return running

    def records(self, path: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text().splitlines()]

    async def test_one_record_a_request_whatever_its_end(
        self, router: Running, executor: StubExecutor, path: Path
    ) -> None:
        hint = types_pb2.AgentHint(expert="chart", confidence=0.5)
        await router.stub.Route(route(request_id="first", agent_hint=hint))
        [_ async for _ in router.stub.Predict(predict(request_id="second"))]
        await failure(router.stub.Route(route(text="", request_id="third")))
        executor.delay_s = 30.0
        await failure(router.stub.Route(route(request_id="fourth"), timeout=0.2))
        await router.stub.GetRouterInfo(router_pb2.GetRouterInfoRequest())
        records = self.records(path)
        outcomes = [(r["request_id"], r["method"], r["code"], r["cause"]) for r in records]
        assert outcomes == [
            ("first", "Route", "OK", ""),
            ("second", "Predict", "OK", ""),
            ("third", "Route", "INVALID_ARGUMENT", "EMPTY_PROMPT"),
            ("fourth", "Route", "DEADLINE_EXCEEDED", "EXECUTOR_TIMEOUT"),
        ]
        first = records[0]
        assert first["reason"] == "agent_vetoed"
        assert first["gates"] == {"calendar": 1.0}
        assert first["experts"] == {"calendar": router_bundle.EXPERTS[0].digest}
        assert first["hint"] == {"expert": "chart", "confidence": 0.5}
        assert (first["mode"], first["masked_experts"]) == ("top1", [])
        assert first["caller"] == "anonymous"
        assert first["expert_set"] == "set-1"
        assert datetime.fromisoformat(first["time"]).utcoffset() == timedelta(0)
        assert "gates" not in records[2]

    async def test_a_caller_that_left_has_a_record_too(
        self, router: Running, executor: StubExecutor, path: Path
    ) -> None:
        executor.delay_s = 30.0
        call = router.stub.Route(route(request_id="left"))
        while not executor.seen:  # noqa: ASYNC110 (the list has no event)
            await asyncio.sleep(0.01)
        call.cancel()
        for _ in range(500):
            if self.records(path):
                break
            await asyncio.sleep(0.01)
        [record] = self.records(path)
        assert (record["request_id"], record["code"]) == ("left", "CANCELLED")
        assert "gates" not in record

    async def test_it_holds_no_content(
        self, router: Running, executor: StubExecutor, path: Path
    ) -> None:
        request = predict(text="calendar CANARY-7 for Mrs. Smith")
        request.prompt.system = "CANARY-7"
        request.screen.data = b"CANARY-7"
        [_ async for _ in router.stub.Predict(request)]
        options = types_pb2.RoutingOptions(masked_experts=["CANARY-7"])
        assert (await failure(router.stub.Route(route(options=options))))[0] == "NOT_FOUND"
        text = json.dumps(self.records(path))
        assert len(self.records(path)) == 2
        for secret in ("CANARY", "Smith", "context-1", "click"):
            assert secret not in text

    async def test_a_disk_that_is_full_long_enough_stops_decisions(
        self,
        router: Running,
        executor: StubExecutor,
        path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(audit, "MAX_HELD", 2)

        def full(file: int, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "full")

        with monkeypatch.context() as broken:
            broken.setattr(audit.os, "write", full)
            await router.stub.Route(route())
            await router.stub.Route(route())
            held = router.registry.get_sample_value("molora_router_audit_held")
            assert held == 2
            before = len(executor.seen)
            refused = await failure(router.stub.Route(route()))
            assert refused == ("UNAVAILABLE", "AUDIT_UNWRITABLE")
            assert len(executor.seen) == before
        await router.stub.Route(route())
        assert len(self.records(path)) == 3

    async def test_a_token_says_who(
        self, start: Call, executor: StubExecutor, path: Path, tmp_path: Path
    ) -> None:
        tokens = tmp_path / "tokens"
        tokens.write_text("infer s3cret-of-the-agent\n")
        router = await start(executor.address, audit_file=path, tokens_file=tokens)
        metadata = (("authorization", "Bearer s3cret-of-the-agent"),)
        await router.until_serving()
        await router.stub.Route(route(), metadata=metadata)
        [record] = self.records(path)
        fingerprint = hashlib.sha256(b"s3cret-of-the-agent").hexdigest()[:16]
        assert record["caller"] == f"token:{fingerprint}"


class TestProcess:
    """`python -m router_service` itself."""

    def _run(self, *flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "router_service", *flags],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def test_a_bundle_that_is_not_there(self, tmp_path: Path) -> None:
        done = self._run("--bundle", str(tmp_path), "--port", "0", "--metrics-port", "0")
        assert done.returncode == 3
        assert "router.json cannot be read" in done.stderr
        assert done.stdout == ""

    def test_an_audit_file_that_cannot_be_written(self, tmp_path: Path) -> None:
        done = self._run("--audit-file", str(tmp_path / "no" / "audit.jsonl"))
        assert done.returncode == 2
        assert "cannot be written (No such file or directory)" in done.stderr
        assert done.stdout == ""

    def test_a_flag_that_cannot_be(self) -> None:
        done = self._run("--routing-mode", "top3")
        assert done.returncode == 2
        assert "--routing-mode" in done.stderr

    async def test_it_serves_until_it_is_told_to_stop(
        self, executor: StubExecutor, tmp_path: Path
    ) -> None:
        bundle = router_bundle.write_bundle(tmp_path / "router")
        flags = ["--bundle", str(bundle), "--executor", executor.address]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "router_service", "--port", "0", "--metrics-port", "0", *flags),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        address = line.removeprefix("router listening on ").strip()
        async with grpc.aio.insecure_channel(address) as channel:
            running = Running(
                router_pb2_grpc.RouterServiceStub(channel),
                health_pb2_grpc.HealthStub(channel),
                address,
            )
            await running.until_serving()
            reply = await running.stub.Route(route())
            assert dict(reply.decision.gates.weights) == {"calendar": 1.0}
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 30) == 0
        await process.stdout.read()
