"""Protobuf to the router's nouns and back; the only place where their fields meet.

Knows the contract's messages; knows no rule of the policy and no channel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from molora.v1 import executor_pb2, router_pb2, types_pb2
from router_service.core import (
    Abstention,
    Decision,
    ExecutorInfo,
    Features,
    Hint,
    LoadedExpert,
    Mode,
    Options,
    Vector,
)
from router_service.errors import InvalidArgument
from router_service.manifest import AgentModel, Manifest
from router_service.policy import PolicyConfig

RoutingRequest = router_pb2.RouteRequest | router_pb2.PredictRequest

NEVER_ABSTAINS = "the bundle states no distance from which on no expert knows a screen"

_UNSPECIFIED = types_pb2.ROUTING_MODE_UNSPECIFIED
_MODES: dict[int, Mode] = {
    types_pb2.ROUTING_MODE_SOFT: Mode.SOFT,
    types_pb2.ROUTING_MODE_TOP1: Mode.TOP1,
    types_pb2.ROUTING_MODE_TOP2: Mode.TOP2,
}


def check_question(request: RoutingRequest) -> None:
    """Refuse a request that asks nothing; on the fast path nobody else would.

    Raises:
        InvalidArgument: EMPTY_PROMPT or EMPTY_SCREEN.
    """
    if not request.prompt.text.strip():
        raise InvalidArgument("EMPTY_PROMPT", "The prompt has no text; send the instruction.")
    if not (request.screen.data or request.screen.context_id):
        raise InvalidArgument("EMPTY_SCREEN", "The screen has no bytes; send a PNG or JPEG file.")


def read_hint(request: RoutingRequest) -> Hint | None:
    """The agent's hint, or None if the request has none."""
    if not request.HasField("agent_hint"):
        return None
    hint = request.agent_hint
    confidence = hint.confidence if hint.HasField("confidence") else None
    return Hint(hint.expert, confidence, hint.fast_path)


def read_options(request: RoutingRequest) -> Options:
    """The caller's options.

    Raises:
        InvalidArgument: UNKNOWN_MODE, a number that no mode has.
    """
    options = request.options
    if options.mode != _UNSPECIFIED and options.mode not in _MODES:
        raise InvalidArgument("UNKNOWN_MODE", "The mode is none of SOFT, TOP1 and TOP2.")
    return Options(
        mode=_MODES.get(options.mode),
        temperature=options.temperature if options.HasField("temperature") else None,
        masked_experts=tuple(options.masked_experts),
        expert_override=options.expert_override if options.HasField("expert_override") else None,
    )


def read_features(reply: executor_pb2.ExtractFeaturesResponse) -> Features:
    """The executor's features, unchecked."""
    text, vision = _floats(reply, "text_features"), _floats(reply, "vision_features")
    return Features(
        text=text,
        vision=vision,
        feature_spec=reply.feature_spec,
        model=reply.model,
        expert_set=reply.expert_set,
        context_id=reply.context_id,
    )


def _floats(message: Message, field: str) -> Vector:
    """A packed float field as an array, by its bytes on the wire.

    As Python floats, the features of an 8B model would take longer than all else the router does.
    """
    number = message.DESCRIPTOR.fields_by_name[field].number
    # Parsed as a message without fields, every field is kept as an unknown one.
    parts: Any = UnknownFieldSet(Empty.FromString(message.SerializeToString()))
    found = [part.data for part in parts if part.field_number == number]
    return np.frombuffer(b"".join(found), np.dtype("<f4"))


def read_info(reply: executor_pb2.GetServerInfoResponse) -> ExecutorInfo:
    """What the executor says it runs."""
    return ExecutorInfo(
        model=reply.model,
        feature_spec=reply.feature_spec.digest,
        expert_set=reply.expert_set,
        experts=tuple(
            LoadedExpert(expert.name, expert.digest, expert.generation) for expert in reply.experts
        ),
    )


def write_decision(decision: Decision, expert_set: str, router_version: str) -> types_pb2.Decision:
    """A decision as clients see it."""
    return types_pb2.Decision(
        abstention=write_abstention(decision.abstention),
        distance=decision.distance,
        gates=types_pb2.Gates(
            weights=decision.gates,
            layers=[
                types_pb2.LayerGates(layer=layer, weights=weights)
                for layer, weights in enumerate(decision.layers)
            ],
        ),
        probabilities=decision.probabilities,
        reason=types_pb2.DecisionReason.Value(f"DECISION_REASON_{decision.reason.name}"),
        confidence=decision.confidence,
        entropy=decision.entropy,
        expert_set=expert_set,
        router_version=router_version,
    )


def write_abstention(outcome: Abstention | None) -> types_pb2.AbstentionOutcome.ValueType:
    """None is UNSPECIFIED."""
    name = outcome.name if outcome else "UNSPECIFIED"
    return types_pb2.AbstentionOutcome.Value(f"ABSTENTION_OUTCOME_{name}")


def write_generate(
    request: router_pb2.PredictRequest,
    decision: types_pb2.Decision,
    context_id: str,
    request_id: str,
) -> executor_pb2.GenerateRequest:
    """The Generate that carries out a decision, on the cached screen if there is one."""
    screen = types_pb2.Screen(context_id=context_id) if context_id else request.screen
    generate = executor_pb2.GenerateRequest(
        prompt=request.prompt,
        screen=screen,
        masked_experts=request.options.masked_experts,
        expert_set=decision.expert_set,
        request_id=request_id,
    )
    if decision.abstention == types_pb2.ABSTENTION_OUTCOME_BASE:
        generate.base_only = True
    else:
        generate.gates.CopyFrom(decision.gates)
    if request.HasField("max_new_tokens"):
        generate.max_new_tokens = request.max_new_tokens
    if request.HasField("sampling"):
        generate.sampling.CopyFrom(request.sampling)
    return generate


def write_event(event: executor_pb2.GenerateResponse) -> router_pb2.PredictResponse:
    """What Generate streams, as Predict streams it."""
    if event.HasField("completed"):
        return router_pb2.PredictResponse(completed=event.completed)
    return router_pb2.PredictResponse(delta=event.delta)


def write_info(
    manifest: Manifest, policy: PolicyConfig, info: ExecutorInfo | None
) -> router_pb2.GetRouterInfoResponse:
    """The bundle and the policy in force.

    Args:
        manifest: The bundle's.
        policy: What is in force, flags included.
        info: The executor that matches, or None.
    """
    generations = {expert.name: expert.generation for expert in info.experts} if info else {}
    thresholds = _thresholds(policy)
    return router_pb2.GetRouterInfoResponse(
        feature_spec=manifest.feature_spec_digest,
        expert_set=info.expert_set if info else "",
        experts=[
            types_pb2.ExpertIdentity(
                name=expert.name,
                digest=expert.digest,
                generation=generations.get(expert.name, 0),
            )
            for expert in manifest.experts
        ],
        mode=types_pb2.RoutingMode.Value(f"ROUTING_MODE_{policy.mode.value.name}"),
        mode_reason=policy.mode.why,
        temperature=policy.temperature.value,
        temperature_reason=policy.temperature.why,
        thresholds={name: value for name, (value, _) in thresholds.items() if value is not None},
        threshold_reasons={name: why for name, (_, why) in thresholds.items()},
        abstention=write_abstention(policy.outcome),
        agent=_agent(policy.agent),
        serving=info is not None,
    )


def _thresholds(policy: PolicyConfig) -> dict[str, tuple[float | None, str]]:
    """Name to value, None if it is never reached, and to where it comes from."""
    limits, rule = policy.thresholds, policy.abstention
    return {
        "agent_fast_path": (limits.agent_fast_path.value, limits.agent_fast_path.why),
        "agent_accept": (limits.agent_accept.value, limits.agent_accept.why),
        "agent_veto": (limits.agent_veto.value, limits.agent_veto.why),
        "abstention": (rule.threshold, rule.why) if rule else (None, NEVER_ABSTAINS),
    }


def _agent(agent: AgentModel | None) -> router_pb2.AgentModel | None:
    if agent is None:
        return None
    return router_pb2.AgentModel(
        weight=agent.weight,
        reliability=agent.reliability,
        ceiling=agent.ceiling,
        reason=agent.why,
    )
