"""What the page asks for: the state, the decisions, and answers in steps."""

from __future__ import annotations

from typing import Any

import grpc

from clients.web.errors import UPSTREAM
from molora.v1 import executor_pb2, router_pb2, types_pb2
from tests.support.bridge import RunningBridge, running_bridge
from tests.support.stub_services import (
    ANSWER,
    SCREEN,
    Fail,
    Reply,
    StubServices,
    completed,
    decision,
)

CANARY = "Quillabeth-Vantongeren"


class TestState:
    def test_health_names_the_labels(self, bridge: RunningBridge) -> None:
        answered = bridge.get("/health")
        assert answered.status == 200
        assert answered.json == {
            "status": "serving",
            "model": "m",
            "router": "r1",
            "experts": [
                {"name": "calendar", "label": 0},
                {"name": "claim-window", "label": None},
            ],
        }

    def test_a_router_that_does_not_serve(self, bridge: RunningBridge, stub: StubServices) -> None:
        info = router_pb2.GetRouterInfoResponse(serving=False, not_serving_reason="EXPERT_CHANGED")
        stub.script["GetRouterInfo"] = [Reply((info,)), Reply((info,))]
        answered = bridge.get("/health")
        assert (answered.status, answered.json["reason"]) == (503, "EXPERT_CHANGED")
        facts = bridge.get("/inspect/server").json
        assert facts["router"]["not_serving_reason"] == "EXPERT_CHANGED"
        assert [one["name"] for one in facts["experts"]] == ["calendar", "claim-window"]

    def test_decisions_of_every_path_are_seen(
        self, stub: StubServices, ask: dict[str, Any]
    ) -> None:
        with running_bridge(stub.address, stub.address) as bridge:
            for path in ("/infer_web", "/", "/inspect"):
                bridge.post(path, ask)
            bridge.post("/inspect", {**ask, "base_only": True})
            seen = bridge.get("/inspect/decisions").json
        assert (seen["count"], seen["marginals"]) == (3, {"calendar": 1.0})
        assert ask["prompt"] not in str(seen)


class TestInspect:
    def test_the_decision_comes_first_and_what_ran_last(
        self, bridge: RunningBridge, stub: StubServices, ask: dict[str, Any]
    ) -> None:
        answered = bridge.post("/inspect", {**ask, "mode": "soft"})
        assert answered.headers["content-type"] == "application/x-ndjson"
        first, *pieces, last = answered.lines
        assert first["event"] == "decision"
        assert first["gates"] == {"calendar": 1.0}
        assert first["probabilities"] == {"calendar": 0.75, "claim-window": 0.25}
        assert "ctx-1" not in str(answered.raw), "the held screen's capability stays here"
        assert "".join(piece["text"] for piece in pieces) == ANSWER
        assert (last["event"], last["text"]) == ("completed", ANSWER)
        assert last["calls"] == [
            {"name": "computer_use", "action": "", "coordinate": None, "arguments": {}}
        ]
        assert last["applied"]["gates"] == {"calendar": 1.0}
        assert stub.seen("Route")[0].request.options.mode == types_pb2.ROUTING_MODE_SOFT
        [generate] = stub.seen("Generate")
        assert generate.request.screen.context_id == "ctx-1"
        assert generate.request.expert_set == "e" * 64

    def test_an_override_by_label(
        self, bridge: RunningBridge, stub: StubServices, ask: dict[str, Any]
    ) -> None:
        assert bridge.post("/inspect", {**ask, "expert": 0}).status == 200
        assert stub.seen("Route")[0].request.options.expert_override == "calendar"

    def test_the_bare_base_is_not_routed(
        self, bridge: RunningBridge, stub: StubServices, ask: dict[str, Any]
    ) -> None:
        lines = bridge.post("/inspect", {**ask, "base_only": True}).lines
        assert lines[0]["event"] == "text"
        assert lines[-1]["applied"]["base_only"]
        assert not stub.seen("Route")
        assert stub.seen("Generate")[0].request.screen.data == SCREEN

    def test_a_router_that_abstains_to_the_base(
        self, bridge: RunningBridge, stub: StubServices, ask: dict[str, Any]
    ) -> None:
        chosen = decision(
            gates=types_pb2.Gates(),
            reason=types_pb2.DECISION_REASON_ABSTAINED,
            abstention=types_pb2.ABSTENTION_OUTCOME_BASE,
            distance=4.0,
        )
        reply = router_pb2.RouteResponse(decision=chosen, context_id="ctx-1", executor=stub.address)
        stub.script["Route"] = [Reply((reply,))]
        first, *_, last = bridge.post("/inspect", ask).lines
        assert (first["reason"], first["gates"], first["distance"]) == ("ABSTAINED", {}, 4.0)
        assert last["applied"]["base_only"]
        [generate] = stub.seen("Generate")
        assert generate.request.base_only
        assert generate.request.screen.context_id == "ctx-1"

    def test_a_call_that_cannot_be_read(
        self, bridge: RunningBridge, stub: StubServices, ask: dict[str, Any]
    ) -> None:
        text = f"<tool_call>{CANARY}</tool_call>"
        events = (
            executor_pb2.GenerateResponse(delta=executor_pb2.Delta(text=text)),
            executor_pb2.GenerateResponse(completed=completed()),
        )
        stub.script["Generate"] = [Reply(events)]
        last = bridge.post("/inspect", ask).lines[-1]
        assert (last["calls"], last["calls_unreadable"]) == ([], "tool call 1 is not JSON")

    def test_a_failure_before_the_first_event_has_a_status(
        self, bridge: RunningBridge, stub: StubServices, ask: dict[str, Any]
    ) -> None:
        stub.script["Route"] = [Fail(grpc.StatusCode.INVALID_ARGUMENT, "UNREADABLE_SCREEN")]
        answered = bridge.post("/inspect", ask)
        assert (answered.status, answered.json["reason"]) == (400, "UNREADABLE_SCREEN")

    def test_a_failure_after_it_is_the_last_event(
        self, bridge: RunningBridge, stub: StubServices, ask: dict[str, Any]
    ) -> None:
        stub.script["Generate"] = [Fail(grpc.StatusCode.ABORTED, "EXPERT_SET_CHANGED")]
        answered = bridge.post("/inspect", ask)
        assert answered.status == 200
        assert [line["event"] for line in answered.lines] == ["decision", "error"]
        assert answered.lines[-1]["status"] == 409
        assert answered.lines[-1]["error"] == UPSTREAM["ABORTED"][1]
