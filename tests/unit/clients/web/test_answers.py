"""The two shapes that existing clients speak, over real HTTP, before scripted services."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from clients.web.errors import REFUSALS, UPSTREAM
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
    deltas,
    expert,
)

TEXTS = {text for _, text in [*REFUSALS.values(), *UPSTREAM.values()]}


def predicted(name: str, reason: Any = types_pb2.DECISION_REASON_ROUTER) -> Reply:
    """A stream that applies this expert alone."""
    gates = types_pb2.Gates(weights={name: 1.0})
    ran = completed(gates=gates, experts=[types_pb2.ExpertIdentity(name=name, digest="d")])
    ran.timings.decode_ms = 1500.0
    return Reply(
        (
            router_pb2.PredictResponse(
                decision=decision(gates=gates, reason=reason),
                route_timings=router_pb2.RouteTimings(features_ms=5.0, head_ms=1.0, total_ms=7.0),
            ),
            *(router_pb2.PredictResponse(delta=delta) for delta in deltas()),
            router_pb2.PredictResponse(completed=ran),
        )
    )


def labelled(**labels: int | None) -> Reply:
    """The loaded experts, with these labels."""
    experts = [
        expert(name.replace("_", "-"), **({} if label is None else {"label": label}))
        for name, label in labels.items()
    ]
    return Reply((executor_pb2.ListExpertsResponse(experts=experts, expert_set="e" * 64),))


class TestInferWeb:
    def test_it_answers_in_the_shape_that_pages_know(
        self, bridge: RunningBridge, stub: StubServices, ask: dict[str, Any]
    ) -> None:
        stub.script["Predict"] = [predicted("calendar")]
        answered = bridge.post("/infer_web", ask)
        assert answered.status == 200
        assert answered.json == {
            "task_output": ANSWER,
            "routed_adapter": "calendar",
            "model": "m",
        }
        [call] = stub.seen("Predict")
        assert call.request.screen.data == SCREEN
        assert call.request.prompt.text == ask["prompt"]
        assert not call.request.options.expert_override
        assert answered.headers["x-request-id"] == call.metadata["x-request-id"]

    @pytest.mark.parametrize(
        ("choice", "forced"),
        [
            ({"expert": 2}, "calendar"),
            ({"expert": -1}, "claim-window"),
            ({"adapter": "claim-window"}, "claim-window"),
            ({"expert": 2, "adapter": "calendar"}, "calendar"),
            ({"expert": None}, ""),
        ],
    )
    def test_labels_are_those_of_the_loaded_experts(
        self,
        bridge: RunningBridge,
        stub: StubServices,
        ask: dict[str, Any],
        choice: dict[str, Any],
        forced: str,
    ) -> None:
        stub.script["ListExperts"] = [labelled(calendar=2, claim_window=-1, desktop=None)]
        assert bridge.post("/infer_web", {**ask, **choice}).status == 200
        assert stub.seen("Predict")[0].request.options.expert_override == forced

    @pytest.mark.parametrize(
        ("choice", "status", "reason"),
        [
            ({"expert": 3}, 404, "UNKNOWN_LABEL"),
            ({"expert": 2}, 409, "AMBIGUOUS_LABEL"),
            ({"expert": 5, "adapter": "calendar"}, 400, "LABEL_AND_ADAPTER"),
        ],
    )
    def test_a_label_that_names_nobody_reaches_no_model(
        self,
        bridge: RunningBridge,
        stub: StubServices,
        ask: dict[str, Any],
        choice: dict[str, Any],
        status: int,
        reason: str,
    ) -> None:
        stub.script["ListExperts"] = [labelled(calendar=2, claim_window=2, desktop=5)]
        answered = bridge.post("/infer_web", {**ask, **choice})
        assert (answered.status, answered.json["reason"]) == (status, reason)
        assert answered.json["task_output"] is None
        assert answered.json["error"] in TEXTS
        assert not stub.seen("Predict")

    def test_of_two_with_one_label_the_name_decides(
        self, bridge: RunningBridge, stub: StubServices, ask: dict[str, Any]
    ) -> None:
        stub.script["ListExperts"] = [labelled(calendar=2, claim_window=2)]
        assert bridge.post("/", {**ask, "expert": 2, "adapter": "claim-window"}).status == 200
        assert stub.seen("Predict")[0].request.options.expert_override == "claim-window"


class TestPlain:
    def test_it_answers_in_the_shape_that_scripts_know(
        self, bridge: RunningBridge, stub: StubServices, ask: dict[str, Any]
    ) -> None:
        stub.script["Predict"] = [predicted("calendar")]
        ask["image_b64"] = f"data:image/png;base64,{ask['image_b64']}"
        answer = bridge.post("/", ask).json
        timings = answer.pop("timings")
        assert answer == {
            "output": ANSWER,
            "adapter": "calendar",
            "expert": 0,
            "routed": True,
            "error": None,
        }
        assert timings["decode"] == pytest.approx(1.5)
        assert timings["route"] == pytest.approx(0.007)
        assert 0 < timings["total"] < 5

    def test_who_is_forced_was_not_routed_and_may_have_no_label(
        self, bridge: RunningBridge, stub: StubServices, ask: dict[str, Any]
    ) -> None:
        stub.script["Predict"] = [
            predicted("claim-window", types_pb2.DECISION_REASON_MANUAL_OVERRIDE)
        ]
        answer = bridge.post("/", {**ask, "adapter": "claim-window"}).json
        assert (answer["adapter"], answer["expert"], answer["routed"]) == (
            *("claim-window", None, False),
        )

    def test_the_heaviest_expert_is_named_and_a_tie_goes_to_the_first_of_the_set(
        self, bridge: RunningBridge, stub: StubServices, ask: dict[str, Any]
    ) -> None:
        names = ("desktop", "calendar", "claim-window")
        for weights, named in (((0.2, 0.3, 0.5), "claim-window"), ((0.4, 0.4, 0.2), "desktop")):
            reply = predicted("calendar")
            applied = reply.messages[-1].completed.applied
            applied.gates.weights.update(dict(zip(names, weights, strict=True)))
            del applied.experts[:]
            for name in names:
                applied.experts.add(name=name)
            stub.script["Predict"] = [reply]
            assert bridge.post("/", ask).json["adapter"] == named


class TestFailures:
    @pytest.mark.parametrize(
        ("code", "status"),
        [
            (grpc.StatusCode.INVALID_ARGUMENT, 400),
            (grpc.StatusCode.NOT_FOUND, 404),
            (grpc.StatusCode.FAILED_PRECONDITION, 503),
            (grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
            (grpc.StatusCode.UNAUTHENTICATED, 502),
            (grpc.StatusCode.INTERNAL, 502),
            (grpc.StatusCode.UNKNOWN, 502),
        ],
    )
    def test_a_service_that_refuses(
        self,
        bridge: RunningBridge,
        stub: StubServices,
        ask: dict[str, Any],
        code: grpc.StatusCode,
        status: int,
    ) -> None:
        stub.script["Predict"] = [Fail(code, "A_REASON", retry_after_s=2.5)]
        answered = bridge.post("/", ask)
        assert (answered.status, answered.json["reason"]) == (status, "A_REASON")
        assert answered.json["output"] is None
        assert "constant text of the server" not in answered.raw.decode()
        assert answered.headers["retry-after"] == "3"
        [call] = stub.seen("Predict")
        assert answered.json["request_id"] == call.metadata["x-request-id"]

    def test_a_stream_without_its_end_is_no_answer(
        self, bridge: RunningBridge, stub: StubServices, ask: dict[str, Any]
    ) -> None:
        stub.script["Predict"] = [Reply(predicted("calendar").messages[:-1])]
        answered = bridge.post("/infer_web", ask)
        assert (answered.status, answered.json["reason"]) == (502, "INCOMPLETE_STREAM")
        assert answered.json["task_output"] is None

    def test_nobody_there(self, ask: dict[str, Any]) -> None:
        with running_bridge("127.0.0.1:1", "127.0.0.1:1", timeout_s=0.5) as bridge:
            for path in ("/infer_web", "/"):
                assert bridge.post(path, ask).status in (503, 504)
            answered = bridge.get("/health")
        assert answered.status == 503
        assert answered.json["status"] == "not_serving"
        assert answered.json["error"] == UPSTREAM["UNAVAILABLE"][1]
