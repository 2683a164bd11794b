"""Both clients against the stub: what is sent, and what comes back."""

import inspect
from pathlib import Path

import pytest

import molora_client
from molora.v1 import router_pb2, types_pb2
from molora_client import (
    AbstentionOutcome,
    AgentHint,
    AgentModel,
    AsyncMolora,
    ContextRef,
    DecisionReason,
    FinishReason,
    InvalidArgumentError,
    Molora,
    Prompt,
    RoutingMode,
    RoutingOptions,
    Sampling,
    Turn,
)
from tests.support.stub_services import ANSWER, EXPERT_SET, SCREEN, Reply, decision


@pytest.fixture
def client(stub):
    with Molora(stub.address, stub.address, timeout_s=10) as molora:
        yield molora


def test_route_returns_the_decision_and_a_context_that_keeps_the_bytes(stub, client):
    routed = client.route("Click December 3", SCREEN)

    assert routed.gates == {"calendar": 1.0}
    assert routed.probabilities == {"calendar": 0.75, "claim-window": 0.25}
    assert routed.reason is DecisionReason.ROUTER
    assert (routed.confidence, routed.entropy) == (0.75, 0.5)
    assert routed.expert_set == EXPERT_SET
    assert routed.context == ContextRef("ctx-1", stub.address, SCREEN)
    assert (routed.context_id, routed.executor) == ("ctx-1", stub.address)
    assert routed.timings.total_ms == 7.0

    [call] = stub.seen("Route")
    assert call.request.prompt.text == "Click December 3"
    assert call.request.screen.data == SCREEN
    assert not call.request.HasField("agent_hint")
    assert not call.request.HasField("options")
    assert call.metadata["x-request-id"] == call.request.request_id == routed.request_id
    assert 8 < call.time_remaining_s < 10.5


def test_an_abstention_says_what_comes_instead(stub, client):
    assert client.route("Click", SCREEN).abstention is None
    abstained = decision(
        gates=types_pb2.Gates(),
        reason=types_pb2.DECISION_REASON_ABSTAINED,
        abstention=types_pb2.ABSTENTION_OUTCOME_BASE,
        distance=2.5,
    )
    stub.script["Route"].append(Reply((router_pb2.RouteResponse(decision=abstained),)))
    routed = client.route("Click", SCREEN)
    assert routed.reason is DecisionReason.ABSTAINED
    assert routed.abstention is AbstentionOutcome.BASE
    assert (routed.gates, routed.distance) == ({}, 2.5)


def test_route_sends_everything_it_is_given(stub, client, tmp_path: Path):
    image = tmp_path / "screen.png"
    image.write_bytes(SCREEN)
    prompt = Prompt("now", system="be brief", history=(Turn("user", "a"), Turn("assistant", "b")))
    client.route(
        prompt,
        image,
        hint=AgentHint("calendar", confidence=0.0, fast_path=False),
        options=RoutingOptions(
            mode=RoutingMode.TOP2, temperature=0.5, masked_experts=("x",), expert_override="y"
        ),
        timeout_s=3,
    )

    request = stub.seen("Route")[0].request
    assert request.prompt.system == "be brief"
    assert [(turn.role, turn.text) for turn in request.prompt.history] == [
        ("user", "a"),
        ("assistant", "b"),
    ]
    assert request.screen.data == SCREEN
    # Zero and False were given, so they are present.
    assert request.agent_hint.HasField("confidence")
    assert request.agent_hint.HasField("fast_path")
    assert request.options.mode == types_pb2.ROUTING_MODE_TOP2
    assert request.options.temperature == 0.5
    assert list(request.options.masked_experts) == ["x"]
    assert request.options.expert_override == "y"
    assert stub.seen("Route")[0].time_remaining_s < 3.5


def test_generate_streams_and_states_what_was_applied(stub, client):
    with client.generate_stream("p", SCREEN, expert="calendar") as stream:
        pieces = list(stream)

    assert "".join(pieces) == ANSWER
    assert len(pieces) == 2
    result = stream.result
    assert result.text == ANSWER
    assert result.token_ids == (0, 1, 2)
    assert result.finish_reason is FinishReason.STOP
    assert result.usage.image_tokens == 12
    assert result.applied.gates == {"calendar": 1.0}
    assert result.applied.vision_reused
    assert stream.routed is None
    assert client.generate("p", SCREEN, expert="calendar").text == ANSWER


def test_generate_goes_to_the_replica_that_holds_the_context(stub, other_stub, client):
    routed = client.route("p", SCREEN)
    held = ContextRef(routed.context_id, other_stub.address, SCREEN)
    client.generate("p", held, gates=routed.gates, expert_set=routed.expert_set)

    assert stub.seen("Generate") == []
    request = other_stub.seen("Generate")[0].request
    assert request.screen.context_id == "ctx-1"
    assert dict(request.gates.weights) == {"calendar": 1.0}
    assert request.expert_set == EXPERT_SET


def test_a_context_without_an_id_sends_its_bytes(stub, client):
    client.generate("p", ContextRef("", "", SCREEN), expert="calendar")

    assert stub.seen("Generate")[0].request.screen.data == SCREEN


def test_generate_sends_everything_it_is_given(stub, client):
    client.generate(
        "p",
        SCREEN,
        gates={"a": 0.25, "b": 0.75},
        layer_gates={0: {"a": 1.0}, 1: {"b": 1.0}},
        mode=RoutingMode.SOFT,
        masked_experts=("c",),
        max_new_tokens=0,
        sampling=Sampling(temperature=0.0, top_p=0.5, top_k=3, seed=0, stop=("x",)),
    )

    request = stub.seen("Generate")[0].request
    assert dict(request.gates.weights) == {"a": 0.25, "b": 0.75}
    assert [(layer.layer, dict(layer.weights)) for layer in request.gates.layers] == [
        (0, {"a": 1.0}),
        (1, {"b": 1.0}),
    ]
    assert request.mode == types_pb2.ROUTING_MODE_SOFT
    assert list(request.masked_experts) == ["c"]
    assert not request.HasField("expert_set")
    assert request.HasField("max_new_tokens")
    for name in ("temperature", "top_p", "top_k", "seed"):
        assert request.sampling.HasField(name)
    assert list(request.sampling.stop) == ["x"]


def test_empty_gates_are_sent_as_gates_and_left_to_the_executor(stub, client):
    client.generate("p", SCREEN, gates={})

    assert stub.seen("Generate")[0].request.WhichOneof("routing") == "gates"


@pytest.mark.parametrize(
    "choice",
    [{}, {"expert": "a", "base_only": True}, {"gates": {"a": 1.0}, "expert": "a"}],
)
def test_exactly_one_routing_choice_and_nothing_is_sent_otherwise(stub, client, choice):
    with pytest.raises(InvalidArgumentError, match="exactly one"):
        client.generate("p", SCREEN, **choice)
    with pytest.raises(InvalidArgumentError, match="exactly one"):
        client.score("p", SCREEN, "c", **choice)
    assert stub.calls == []


def test_base_only_is_asked_for_in_so_many_words(stub, client):
    assert client.generate("p", SCREEN, base_only=True).applied.base_only
    assert stub.seen("Generate")[0].request.WhichOneof("routing") == "base_only"


def test_predict_returns_decision_and_answer(stub, client):
    stream = client.predict_stream("p", SCREEN, max_new_tokens=7)
    assert next(stream) == ANSWER[: len(ANSWER) // 2]
    assert stream.routed is not None
    assert stream.routed.reason is DecisionReason.ROUTER
    assert list(stream)

    prediction = stream.result
    assert prediction.text == prediction.generation.text == ANSWER
    assert prediction.applied.gates == prediction.routed.gates
    assert prediction.routed.context == ContextRef("ctx-1", stub.address, SCREEN)
    assert prediction.routed.timings.total_ms == 7.0
    assert stub.seen("Predict")[0].request.max_new_tokens == 7


def test_the_answers_about_servers_and_experts(stub, client):
    listed = client.experts()
    assert [expert.name for expert in listed.experts] == ["calendar", "claim-window"]
    assert [expert.label for expert in listed.experts] == [0, None]
    assert listed.expert_set == EXPERT_SET

    assert client.server_info().feature_spec.text_dim == 2
    assert client.server_info().limits.queue_length == 8
    info = client.router_info()
    assert info.mode is RoutingMode.TOP1
    assert info.thresholds == {"veto": 0.5}
    assert info.threshold_reasons == {"veto": "typed", "abstention": "never"}
    assert info.abstention is AbstentionOutcome.ERROR
    assert info.agent == AgentModel(1.0, 0.75, 0.875, "measured")
    assert [expert.name for expert in info.experts] == ["calendar", "claim-window"]


def test_score_and_features(stub, client):
    scored = client.score("p", SCREEN, "answer", expert="calendar", return_prompt_token_ids=True)
    assert scored.token_ids == (4, 5)
    assert scored.log_probabilities == (-0.5, -1.5)
    request = stub.seen("Score")[0].request
    assert (request.completion, request.expert) == ("answer", "calendar")
    assert request.return_prompt_token_ids

    features = client.features("p", SCREEN)
    assert features.text == (1.0, 2.0)
    assert features.vision == (3.0,)
    assert features.context == ContextRef("ctx-2", stub.address, SCREEN)


def test_admin_calls(stub, client):
    assert client.load_expert("new", "new/adapter").expert.name == "new"
    assert stub.seen("LoadExpert")[0].request.path == "new/adapter"
    assert client.unload_expert("old").expert_set == "0"
    assert not stub.seen("UnloadExpert")[0].request.HasField("expected_generation")
    assert client.reload_expert("calendar", expected_generation=1).expert.generation == 2
    assert stub.seen("ReloadExpert")[0].request.expected_generation == 1


def test_a_loopback_token_is_sent_as_bearer(stub):
    with Molora(stub.address, stub.address, token="secret") as molora:
        molora.experts()
    assert stub.calls[0].metadata["authorization"] == "Bearer secret"


@pytest.mark.parametrize("address", ["10.0.0.7:50052", "executor.example:50052", "0.0.0.0:50052"])
def test_a_token_never_leaves_over_plaintext(address):
    with (
        Molora(executor=address, token="secret") as molora,
        pytest.raises(InvalidArgumentError) as caught,
    ):
        molora.experts()
    assert caught.value.reason == "TOKEN_OVER_PLAINTEXT"
    assert "tls" in caught.value.remedy
    assert "secret" not in str(caught.value)


def test_a_token_does_not_follow_a_context_beyond_loopback(stub):
    held = ContextRef("ctx-1", "10.0.0.7:50052", SCREEN)
    with (
        Molora(stub.address, stub.address, token="secret") as molora,
        pytest.raises(InvalidArgumentError),
    ):
        molora.generate("p", held, expert="calendar")


def test_a_screen_of_another_type_is_refused(client):
    with pytest.raises(TypeError, match="not str"):
        client.route("p", "screen.png")


def test_no_screen_in_a_repr(client):
    assert "PNG" not in repr(client.route("p", SCREEN))
    assert "ctx-1" not in repr(client.route("p", SCREEN))


async def test_the_async_client_gives_the_same_answers(stub, client):
    async with AsyncMolora(stub.address, stub.address) as molora:
        routed = await molora.route("p", SCREEN)
        assert routed.gates == client.route("p", SCREEN).gates
        async with molora.predict_stream("p", SCREEN) as stream:
            pieces = [piece async for piece in stream]
        assert "".join(pieces) == stream.result.text == ANSWER
        assert (await molora.predict("p", SCREEN)).text == ANSWER
        answer = await molora.generate("p", routed.context, gates=routed.gates)
        assert answer.applied.gates == routed.gates
        assert (await molora.experts()).expert_set == EXPERT_SET


async def test_many_calls_share_one_async_client(stub):
    import asyncio

    async with AsyncMolora(stub.address, stub.address) as molora:
        answers = await asyncio.gather(*(molora.predict("p", SCREEN) for _ in range(16)))
    assert {answer.text for answer in answers} == {ANSWER}
    assert len({call.metadata["x-request-id"] for call in stub.calls}) == 16


def test_both_clients_offer_the_same_calls():
    def calls(kind: type) -> dict[str, str]:
        return {
            name: str(inspect.signature(getattr(kind, name))).partition(" -> ")[0]
            for name in dir(kind)
            if not name.startswith("_")
        }

    assert calls(Molora) == calls(AsyncMolora)
    assert all(not inspect.iscoroutinefunction(getattr(Molora, name)) for name in calls(Molora))


def test_public_names_are_pinned():
    assert set(molora_client.__all__) == PUBLIC
    for name in PUBLIC:
        assert hasattr(molora_client, name)


PUBLIC = {
    *("AsyncMolora", "Molora", "AsyncTextStream", "TextStream", "Tls"),
    *("AgentHint", "ContextRef", "Prompt", "RoutingMode", "RoutingOptions", "Sampling", "Turn"),
    *("AbstentionOutcome", "AgentModel", "Applied", "DecisionReason", "Expert", "ExpertChange"),
    *("ExpertIdentity", "Experts"),
    *("FeatureSpec", "FeatureTimings", "Features", "FinishReason", "GenerateTimings", "Generation"),
    *("Limits", "Prediction", "RouteTimings", "Routed", "RouterInfo", "Scored", "ServerInfo"),
    *("Usage", "ToolCall", "ToolCallError", "parse_tool_calls", "to_pixels"),
    *("MoloraError", "AbortedError", "AlreadyExistsError", "CancelledError"),
    *("ContextExpiredError", "DataLossError", "DeadlineExceededError", "FailedPreconditionError"),
    *("IncompleteStream", "InternalError", "InvalidArgumentError", "NotFoundError"),
    *("PermissionDeniedError", "ResourceExhaustedError", "UnauthenticatedError"),
    *("UnavailableError", "UnimplementedError"),
}
