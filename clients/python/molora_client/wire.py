"""To and from protobuf, and the table of methods. Knows no channel and no retry rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import Message

from molora.v1 import admin_pb2, executor_pb2, router_pb2, types_pb2
from molora_client import results
from molora_client.inputs import (
    AgentHint,
    ContextRef,
    Gating,
    Prompt,
    RoutingMode,
    RoutingOptions,
    Sampling,
    Screen,
)
from molora_client.results import AbstentionOutcome, DecisionReason, FinishReason

Reply = TypeVar("Reply", bound=Message)
Plain = TypeVar("Plain")


@dataclass(frozen=True)
class Method(Generic[Reply]):
    """One RPC: its path on the wire and the message it answers with."""

    path: str
    reply: type[Reply]


def _method(file: FileDescriptor, service: str, name: str, reply: type[Reply]) -> Method[Reply]:
    found = file.services_by_name[service].methods_by_name[name]
    return Method(f"/{found.containing_service.full_name}/{found.name}", reply)


_ROUTER = (router_pb2.DESCRIPTOR, "RouterService")
_EXECUTOR = (executor_pb2.DESCRIPTOR, "ExecutorService")
_ADMIN = (admin_pb2.DESCRIPTOR, "ExpertAdminService")
ROUTER_SERVICE, EXECUTOR_SERVICE = (
    str(file.services_by_name[service].full_name) for file, service in (_ROUTER, _EXECUTOR)
)

ROUTE = _method(*_ROUTER, "Route", router_pb2.RouteResponse)
PREDICT = _method(*_ROUTER, "Predict", router_pb2.PredictResponse)
GET_ROUTER_INFO = _method(*_ROUTER, "GetRouterInfo", router_pb2.GetRouterInfoResponse)
EXTRACT_FEATURES = _method(*_EXECUTOR, "ExtractFeatures", executor_pb2.ExtractFeaturesResponse)
GENERATE = _method(*_EXECUTOR, "Generate", executor_pb2.GenerateResponse)
SCORE = _method(*_EXECUTOR, "Score", executor_pb2.ScoreResponse)
LIST_EXPERTS = _method(*_EXECUTOR, "ListExperts", executor_pb2.ListExpertsResponse)
GET_SERVER_INFO = _method(*_EXECUTOR, "GetServerInfo", executor_pb2.GetServerInfoResponse)
LOAD_EXPERT = _method(*_ADMIN, "LoadExpert", admin_pb2.LoadExpertResponse)
UNLOAD_EXPERT = _method(*_ADMIN, "UnloadExpert", admin_pb2.UnloadExpertResponse)
RELOAD_EXPERT = _method(*_ADMIN, "ReloadExpert", admin_pb2.ReloadExpertResponse)


def as_context(screen: Screen) -> ContextRef:
    """The screen as a context reference; reads the file of a path.

    Raises:
        OSError: The file cannot be read.
        TypeError: `screen` is none of bytes, Path and ContextRef.
    """
    if isinstance(screen, ContextRef):
        return screen
    if isinstance(screen, Path):
        return ContextRef(context_id="", data=screen.read_bytes())
    if isinstance(screen, bytes):
        return ContextRef(context_id="", data=screen)
    raise TypeError(f"screen must be bytes, Path or ContextRef, not {type(screen).__name__}")


def encode_screen(context: ContextRef) -> types_pb2.Screen:
    """The context if there is one, else the bytes."""
    if context.context_id:
        return types_pb2.Screen(context_id=context.context_id)
    return types_pb2.Screen(data=context.data or b"")


def encode_prompt(prompt: str | Prompt) -> types_pb2.Prompt:
    """A bare string is the instruction."""
    given = Prompt(prompt) if isinstance(prompt, str) else prompt
    history = [types_pb2.Turn(role=turn.role, text=turn.text) for turn in given.history]
    return types_pb2.Prompt(text=given.text, system=given.system, history=history)


def encode_hint(hint: AgentHint | None) -> types_pb2.AgentHint | None:
    """None stays unset."""
    return types_pb2.AgentHint(**dataclasses.asdict(hint)) if hint else None


def encode_options(options: RoutingOptions | None) -> types_pb2.RoutingOptions | None:
    """None stays unset."""
    if options is None:
        return None
    return types_pb2.RoutingOptions(
        mode=encode_mode(options.mode),
        temperature=options.temperature,
        masked_experts=options.masked_experts,
        expert_override=options.expert_override,
    )


def encode_sampling(sampling: Sampling | None) -> types_pb2.Sampling | None:
    """None stays unset."""
    return types_pb2.Sampling(**dataclasses.asdict(sampling)) if sampling else None


def encode_mode(mode: RoutingMode | None) -> types_pb2.RoutingMode.ValueType:
    """None is UNSPECIFIED."""
    name = f"ROUTING_MODE_{mode.name}" if mode else "ROUTING_MODE_UNSPECIFIED"
    return types_pb2.RoutingMode.Value(name)


def set_gating(
    request: executor_pb2.GenerateRequest | executor_pb2.ScoreRequest, gating: Gating
) -> None:
    """Writes what was asked for, and nothing else: the executor refuses none or two choices."""
    if gating.gates is not None:
        request.gates.weights.update(gating.gates)
        request.gates.SetInParent()
        for layer, weights in gating.layer_gates.items():
            request.gates.layers.add(layer=layer).weights.update(weights)
    if gating.expert is not None:
        request.expert = gating.expert
    if gating.base_only:
        request.base_only = True
    request.mode = encode_mode(gating.mode)
    request.masked_experts.extend(gating.masked_experts)
    if gating.expert_set is not None:
        request.expert_set = gating.expert_set


def decode_routed(
    decision: types_pb2.Decision,
    reply: router_pb2.RouteResponse | router_pb2.PredictResponse,
    timings: router_pb2.RouteTimings,
    screen_bytes: bytes | None,
    request_id: str,
) -> results.Routed:
    """A decision with the context that `reply` names; keeps the screen's bytes with it."""
    return results.Routed(
        gates=dict(decision.gates.weights),
        layer_gates=_layer_gates(decision.gates),
        probabilities=dict(decision.probabilities),
        reason=DecisionReason(_name(types_pb2.DecisionReason, decision.reason, "DECISION_REASON_")),
        confidence=decision.confidence,
        entropy=decision.entropy,
        expert_set=decision.expert_set,
        router_version=decision.router_version,
        context=ContextRef(reply.context_id, reply.executor, screen_bytes),
        timings=decode_plain(results.RouteTimings, timings),
        request_id=request_id,
        abstention=_abstention(decision.abstention),
        distance=decision.distance if decision.HasField("distance") else None,
    )


def decode_generation(
    completed: executor_pb2.Completed,
    *,
    text: str,
    token_ids: tuple[int, ...],
    log_probabilities: tuple[float, ...],
    request_id: str,
) -> results.Generation:
    """The collected deltas and what the last message states."""
    finish_reason = _name(executor_pb2.FinishReason, completed.finish_reason, "FINISH_REASON_")
    return results.Generation(
        text=text,
        token_ids=token_ids,
        log_probabilities=log_probabilities,
        finish_reason=FinishReason(finish_reason),
        usage=decode_plain(results.Usage, completed.usage),
        applied=decode_applied(completed.applied),
        timings=decode_plain(results.GenerateTimings, completed.timings),
        request_id=request_id,
    )


def decode_scored(reply: executor_pb2.ScoreResponse, request_id: str) -> results.Scored:
    """Log-probabilities and what really ran."""
    return results.Scored(
        token_ids=tuple(reply.token_ids),
        log_probabilities=tuple(reply.log_probabilities),
        prompt_token_ids=tuple(reply.prompt_token_ids),
        usage=decode_plain(results.Usage, reply.usage),
        applied=decode_applied(reply.applied),
        timings=decode_plain(results.GenerateTimings, reply.timings),
        request_id=request_id,
    )


def decode_features(
    reply: executor_pb2.ExtractFeaturesResponse, context: ContextRef, request_id: str
) -> results.Features:
    """The two feature vectors, and where the screen is held."""
    return decode_plain(
        results.Features,
        reply,
        text=tuple(reply.text_features),
        vision=tuple(reply.vision_features),
        context=context,
        timings=decode_plain(results.FeatureTimings, reply.timings),
        request_id=request_id,
    )


def decode_server_info(reply: executor_pb2.GetServerInfoResponse) -> results.ServerInfo:
    """What an executor runs."""
    return decode_plain(
        results.ServerInfo,
        reply,
        feature_spec=decode_plain(results.FeatureSpec, reply.feature_spec),
        experts=_identities(reply.experts),
        backends=dict(reply.backends),
        limits=decode_plain(results.Limits, reply.limits),
    )


def decode_router_info(reply: router_pb2.GetRouterInfoResponse) -> results.RouterInfo:
    """The bundle and the policy in force."""
    return decode_plain(
        results.RouterInfo,
        reply,
        experts=_identities(reply.experts),
        mode=_mode(reply.mode),
        thresholds=dict(reply.thresholds),
        threshold_reasons=dict(reply.threshold_reasons),
        abstention=_abstention(reply.abstention),
        agent=decode_plain(results.AgentModel, reply.agent) if reply.HasField("agent") else None,
    )


def decode_applied(applied: types_pb2.Applied) -> results.Applied:
    """What really ran."""
    return results.Applied(
        gates=dict(applied.gates.weights),
        layer_gates=_layer_gates(applied.gates),
        masked_experts=tuple(applied.masked_experts),
        experts=_identities(applied.experts),
        expert_set=applied.expert_set,
        system_prompt_digest=applied.system_prompt_digest,
        mode=_mode(applied.mode),
        base_only=applied.base_only,
        vision_reused=applied.vision_reused,
    )


def _mode(mode: types_pb2.RoutingMode.ValueType) -> RoutingMode | None:
    """UNSPECIFIED and modes of a newer server are None."""
    return RoutingMode.__members__.get(_name(types_pb2.RoutingMode, mode, "ROUTING_MODE_"))


def _abstention(outcome: types_pb2.AbstentionOutcome.ValueType) -> AbstentionOutcome | None:
    """UNSPECIFIED and outcomes of a newer server are None."""
    name = _name(types_pb2.AbstentionOutcome, outcome, "ABSTENTION_OUTCOME_")
    return AbstentionOutcome.__members__.get(name)


def _identities(
    identities: Iterable[types_pb2.ExpertIdentity],
) -> tuple[results.ExpertIdentity, ...]:
    """In the given order."""
    return tuple(decode_plain(results.ExpertIdentity, identity) for identity in identities)


def decode_expert(expert: executor_pb2.Expert) -> results.Expert:
    """One loaded expert."""
    label = expert.label if expert.HasField("label") else None
    return decode_plain(results.Expert, expert, label=label, task_types=tuple(expert.task_types))


def decode_plain(kind: type[Plain], message: Message, **given: Any) -> Plain:
    """Builds a dataclass from the message's fields of the same names.

    Args:
        kind: The dataclass.
        message: Holds a scalar field for every field of `kind` that is not given.
        **given: Fields that need a decoding of their own.
    """
    names = [part.name for part in dataclasses.fields(kind)]  # type: ignore[arg-type]
    copied = {name: getattr(message, name) for name in names if name not in given}
    return kind(**copied, **given)


def _name(enum: Any, value: int, prefix: str) -> str:
    """The value's name without its prefix; UNSPECIFIED for a value of a newer server."""
    known = value in enum.values()
    return str(enum.Name(value)).removeprefix(prefix) if known else "UNSPECIFIED"


def _layer_gates(gates: types_pb2.Gates) -> dict[int, dict[str, float]]:
    return {layer.layer: dict(layer.weights) for layer in gates.layers}
