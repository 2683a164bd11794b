"""Messages in and out: what is refused, what is converted to what."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from google.protobuf import text_format

from executor_service import wire
from executor_service.core import ExpertIdentity, GateVector, RoutingMode
from executor_service.engine.work import (
    Applied,
    Completed,
    ExpertState,
    Extracted,
    Facts,
    FeatureTimings,
    FinishReason,
    Limits,
    SamplingParams,
    Scored,
    TextDelta,
    Timings,
    Usage,
)
from molora.v1 import admin_pb2, executor_pb2, types_pb2
from service_chassis.errors import InvalidArgument

LIMIT = 64
TIMINGS = Timings(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)


def generate(text: str = "", **fields: object) -> executor_pb2.GenerateRequest:
    """A good request, then changed by text-format protobuf or fields."""
    request = executor_pb2.GenerateRequest(
        prompt={"text": "Click December 3"}, screen={"data": b"png"}, expert="calendar"
    )
    text_format.Merge(text, request)
    for name, value in fields.items():
        setattr(request, name, value)
    return request


def ask(text: str = "", **fields: object):
    return wire.generate_ask(generate(text, **fields), LIMIT)


def refusal(text: str = "", **fields: object) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as refused:
        ask(text, **fields)
    return refused.value


def test_a_plain_request():
    asked = ask()
    assert asked.instruction.text == "Click December 3"
    assert asked.instruction.system is None
    assert (asked.screen.data, asked.screen.context_id) == (b"png", "")
    assert asked.choice.expert == "calendar"
    assert asked.choice.gates is None
    assert asked.choice.mode is RoutingMode.AS_GIVEN
    assert asked.expert_set is None
    assert asked.max_new_tokens == LIMIT
    assert asked.sampling == SamplingParams()


def test_the_prompt_s_parts():
    asked = ask(
        'prompt { system: "" history { role: "user" text: "a" } '
        'history { role: "assistant" text: "b" } }'
    )
    assert asked.instruction.system == "", "an empty system prompt is not an unset one"
    assert [(turn.role, turn.text) for turn in asked.instruction.history] == [
        ("user", "a"),
        ("assistant", "b"),
    ]


@pytest.mark.parametrize("text", ["", " ", "\n\t "])
def test_an_empty_prompt_is_refused(text):
    request = generate()
    request.prompt.text = text
    with pytest.raises(InvalidArgument) as refused:
        wire.generate_ask(request, LIMIT)
    assert refused.value.reason == "EMPTY_PROMPT"


@pytest.mark.parametrize("screen", [None, {"data": b""}, {"context_id": ""}])
def test_an_empty_screen_is_refused_by_every_rpc(screen):
    fields = {"prompt": {"text": "x"}, "screen": screen}
    with pytest.raises(InvalidArgument):
        wire.generate_ask(executor_pb2.GenerateRequest(**fields, base_only=True), LIMIT)
    with pytest.raises(InvalidArgument):
        wire.score_ask(executor_pb2.ScoreRequest(**fields, base_only=True))
    with pytest.raises(InvalidArgument):
        wire.features_ask(executor_pb2.ExtractFeaturesRequest(**fields))


def test_gates_with_layers():
    asked = ask(
        'gates { weights { key: "a" value: 0.25 } weights { key: "b" value: 0.75 } '
        'layers { layer: 1 weights { key: "a" value: 1 } } layers { layer: 0 } }'
    )
    assert asked.choice.gates == {"a": 0.25, "b": 0.75}
    assert asked.choice.layers == {1: {"a": 1.0}, 0: {}}
    assert asked.choice.expert is None


def test_a_layer_given_twice_is_refused():
    assert refusal("gates { layers { layer: 1 } layers { layer: 1 } }").reason == "LAYER_TWICE"


def test_base_only_must_be_true():
    assert ask("base_only: true").choice.base_only
    choice = ask("base_only: false").choice
    assert (choice.gates, choice.expert, choice.base_only) == (None, None, False)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("SOFT", RoutingMode.SOFT), ("TOP1", RoutingMode.TOP1), ("TOP2", RoutingMode.TOP2)],
)
def test_modes(name, mode):
    assert ask(f"mode: ROUTING_MODE_{name}").choice.mode is mode


def test_an_unknown_mode_is_refused():
    assert refusal(mode=7).reason == "UNKNOWN_MODE"


def test_a_mask_is_a_set_in_order():
    assert ask('masked_experts: ["b", "a", "b"]').choice.masked == ("b", "a")


def test_the_expert_set_is_taken_if_given():
    assert ask('expert_set: "abc"').expert_set == "abc"
    assert ask('expert_set: ""').expert_set == "", "an empty digest matches nothing"


@pytest.mark.parametrize("tokens", [0, -1, LIMIT + 1, 2**31 - 1])
def test_max_new_tokens_out_of_range(tokens):
    error = refusal(max_new_tokens=tokens)
    assert error.reason == "BAD_MAX_NEW_TOKENS"
    assert error.metadata["limit"] == str(LIMIT)


@pytest.mark.parametrize("tokens", [1, LIMIT])
def test_max_new_tokens_in_range(tokens):
    assert ask(max_new_tokens=tokens).max_new_tokens == tokens


@pytest.mark.parametrize(
    "sampling",
    [
        "temperature: nan",
        "temperature: inf",
        "temperature: -0.1",
        "top_p: nan",
        "top_p: inf",
        "top_p: 0",
        "top_p: -1",
        "top_p: 1.01",
        "top_k: 0",
        "top_k: -1",
        'stop: ""',
        f'stop: "{"x" * 257}"',
        " ".join(['stop: "x"'] * 17),
    ],
)
def test_sampling_out_of_range(sampling):
    assert refusal(f"sampling {{ {sampling} }}").reason == "BAD_SAMPLING"


def test_sampling_in_range():
    sampling = ask(
        'sampling { temperature: 0.5 top_p: 1 top_k: 1 seed: 18446744073709551615 stop: "</a>" }'
    ).sampling
    assert sampling == SamplingParams(
        temperature=0.5, top_p=1.0, top_k=1, seed=2**64 - 1, stop=("</a>",)
    )
    assert ask("sampling { seed: 0 }").sampling.seed == 0


def test_a_scoring_is_read_like_a_generation():
    request = executor_pb2.ScoreRequest(
        prompt={"text": "x"}, screen={"context_id": "c"}, expert="calendar", completion="answer"
    )
    asked = wire.score_ask(request)
    assert (asked.screen.context_id, asked.completion) == ("c", "answer")
    request.mode = 9
    with pytest.raises(InvalidArgument):
        wire.score_ask(request)


def test_the_expected_generation_is_taken_if_given():
    assert wire.expected_generation(admin_pb2.UnloadExpertRequest(name="a")) is None
    request = admin_pb2.UnloadExpertRequest(name="a", expected_generation=0)
    assert wire.expected_generation(request) == 0


def applied(**changes: object) -> Applied:
    identity = ExpertIdentity("calendar", "d" * 64, 2)
    fields = {
        "names": ("calendar", "claim-window"),
        "gates": GateVector((1.0, 0.0), ((0.5, 0.5), (1.0, 0.0))),
        "active": (identity,),
        "masked": ("claim-window",),
        "mode": RoutingMode.TOP1,
        "base_only": False,
        "expert_set": "s" * 64,
        "system_prompt_digest": "p" * 64,
        "vision_reused": True,
    }
    return Applied(**{**fields, **changes})


def test_what_was_applied():
    event = Completed(FinishReason.LENGTH, Usage(9, 4, 5, 3), applied(), TIMINGS)
    completed = wire.generate_response(event).completed
    assert completed.finish_reason == executor_pb2.FINISH_REASON_LENGTH
    assert completed.usage == types_pb2.Usage(
        prompt_tokens=9, image_tokens=4, cached_prompt_tokens=5, completion_tokens=3
    )
    told = completed.applied
    assert dict(told.gates.weights) == {"calendar": 1.0}
    assert [dict(layer.weights) for layer in told.gates.layers] == [
        {"calendar": 0.5, "claim-window": 0.5},
        {"calendar": 1.0},
    ]
    assert [layer.layer for layer in told.gates.layers] == [0, 1]
    assert list(told.masked_experts) == ["claim-window"]
    assert [(e.name, e.digest, e.generation) for e in told.experts] == [("calendar", "d" * 64, 2)]
    assert told.mode == types_pb2.ROUTING_MODE_TOP1
    assert (told.expert_set, told.system_prompt_digest) == ("s" * 64, "p" * 64)
    assert (told.base_only, told.vision_reused) == (False, True)
    assert completed.timings.total_ms == 6.0


def test_base_only_has_no_gates():
    bare = applied(gates=GateVector.zeros(2), active=(), base_only=True, mode=RoutingMode.AS_GIVEN)
    event = Completed(FinishReason.STOP, Usage(1, 1, 0, 1), bare, TIMINGS)
    told = wire.generate_response(event).completed.applied
    assert told.base_only
    assert not told.HasField("gates")
    assert told.mode == types_pb2.ROUTING_MODE_UNSPECIFIED


def test_every_finish_reason_has_a_number():
    numbers = {
        wire.generate_response(
            Completed(reason, Usage(1, 1, 0, 1), applied(), TIMINGS)
        ).completed.finish_reason
        for reason in FinishReason
    }
    assert len(numbers) == len(FinishReason)
    assert executor_pb2.FINISH_REASON_UNSPECIFIED not in numbers


def test_a_delta():
    delta = wire.generate_response(TextDelta("hé", (5, 6))).delta
    assert (delta.text, list(delta.token_ids)) == ("hé", [5, 6])


def test_a_score_tells_the_prompt_s_ids_only_if_asked():
    scored = Scored((7, 8), (-0.5, -1.5), (1, 2, 3), Usage(3, 1, 0, 2), applied(), TIMINGS)
    quiet = wire.score_response(scored, executor_pb2.ScoreRequest())
    assert list(quiet.prompt_token_ids) == []
    assert (list(quiet.token_ids), list(quiet.log_probabilities)) == ([7, 8], [-0.5, -1.5])
    full = wire.score_response(scored, executor_pb2.ScoreRequest(return_prompt_token_ids=True))
    assert list(full.prompt_token_ids) == [1, 2, 3]


def test_features():
    extracted = Extracted(
        "id", (0.5,), (1.5, 2.5), "spec", "model", "set", FeatureTimings(1.0, 2.0, 3.0, 6.0)
    )
    told = wire.features_response(extracted)
    assert (list(told.text_features), list(told.vision_features)) == ([0.5], [1.5, 2.5])
    assert (told.context_id, told.feature_spec, told.model, told.expert_set) == (
        "id",
        "spec",
        "model",
        "set",
    )
    assert told.timings.total_ms == 6.0


@pytest.mark.parametrize("label", [None, 0, 3])
def test_an_expert(label):
    state = ExpertState(ExpertIdentity("a", "d", 4), label, 16, 280, True, 2, ("click",))
    told = wire.experts_response([state], "set")
    [expert] = told.experts
    assert expert.HasField("label") is (label is not None)
    assert expert.label == (label or 0)
    assert (expert.name, expert.digest, expert.generation) == ("a", "d", 4)
    assert (expert.rank, expert.matched_modules, expert.in_use) == (16, 280, 2)
    assert expert.targets_vision
    assert list(expert.task_types) == ["click"]
    assert told.expert_set == "set"


def test_server_info():
    spec = SimpleNamespace(
        digest="f",
        text_layer=2,
        text_pooling="mean",
        vision_source="tower",
        vision_pooling="mean",
        text_dim=8,
        vision_dim=16,
        base_digest="b",
        template_version="t",
    )
    limits = Limits(100, 20, 3000, 4000, 5000, 60, 7, 8, 120, 64)
    facts = Facts("b", spec, "cpu", "float32", {"gated": "stacked"}, limits)
    state = ExpertState(ExpertIdentity("a", "d", 4), None, 16, 280, True, 2, ())
    told = wire.info_response(facts, [state], "set")
    assert (told.model, told.expert_set, told.device, told.dtype) == ("b", "set", "cpu", "float32")
    assert (told.feature_spec.digest, told.feature_spec.vision_dim) == ("f", 16)
    assert (told.limits.max_prompt_tokens, told.limits.context_ttl_seconds) == (100, 60)
    assert (told.limits.slots, told.limits.slot_tokens) == (8, 120)
    assert told.limits.prefill_chunk_tokens == 64
    assert (told.experts[0].name, told.experts[0].generation) == ("a", 4)
    assert dict(told.backends) == {"gated": "stacked"}
    assert told.version
