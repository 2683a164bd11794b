"""Messages to the engine's nouns and back, with every check that needs no state.

Knows the contract and the engine's nouns; knows no model, no queue and no channel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import TypeVar

from google.protobuf.message import Message

from executor_service.core import ExpertIdentity, GateVector, RoutingChoice, RoutingMode
from executor_service.engine.work import (
    Applied,
    Completed,
    ExpertState,
    Extracted,
    Facts,
    FeaturesAsk,
    FinishReason,
    GenerateAsk,
    Instruction,
    SamplingParams,
    ScoreAsk,
    Scored,
    ScreenSource,
    TextDelta,
)
from executor_service.model.prompt import Turn
from molora.v1 import admin_pb2, executor_pb2, types_pb2
from service_chassis.errors import InvalidArgument

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256

_MODES = {
    types_pb2.ROUTING_MODE_UNSPECIFIED: RoutingMode.AS_GIVEN,
    types_pb2.ROUTING_MODE_SOFT: RoutingMode.SOFT,
    types_pb2.ROUTING_MODE_TOP1: RoutingMode.TOP1,
    types_pb2.ROUTING_MODE_TOP2: RoutingMode.TOP2,
}
_MODES_OUT = {mode: number for number, mode in _MODES.items()}
_FINISH_REASONS = {
    FinishReason.STOP: executor_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: executor_pb2.FINISH_REASON_LENGTH,
    FinishReason.STOP_STRING: executor_pb2.FINISH_REASON_STOP_STRING,
}

RoutedRequest = executor_pb2.GenerateRequest | executor_pb2.ScoreRequest
Value = TypeVar("Value")


def features_ask(request: executor_pb2.ExtractFeaturesRequest) -> FeaturesAsk:
    """Checks and converts an extraction.

    Raises:
        InvalidArgument: The prompt or the screen is missing.
    """
    return FeaturesAsk(_instruction(request.prompt), _screen(request.screen))


def generate_ask(request: executor_pb2.GenerateRequest, max_new_tokens: int) -> GenerateAsk:
    """Checks and converts a generation.

    Args:
        request: The message.
        max_new_tokens: The server's limit, which is also its default.

    Raises:
        InvalidArgument: A field cannot be used.
    """
    return GenerateAsk(
        instruction=_instruction(request.prompt),
        screen=_screen(request.screen),
        choice=_choice(request),
        expert_set=_optional(request, "expert_set", request.expert_set),
        max_new_tokens=_new_tokens(request, max_new_tokens),
        sampling=_sampling(request.sampling),
    )


def score_ask(request: executor_pb2.ScoreRequest) -> ScoreAsk:
    """Checks and converts a scoring.

    Raises:
        InvalidArgument: A field cannot be used.
    """
    return ScoreAsk(
        instruction=_instruction(request.prompt),
        screen=_screen(request.screen),
        choice=_choice(request),
        expert_set=_optional(request, "expert_set", request.expert_set),
        completion=request.completion,
    )


def features_response(extracted: Extracted) -> executor_pb2.ExtractFeaturesResponse:
    """An extraction's answer."""
    return executor_pb2.ExtractFeaturesResponse(
        context_id=extracted.context_id,
        text_features=extracted.text,
        vision_features=extracted.vision,
        feature_spec=extracted.feature_spec,
        model=extracted.model,
        expert_set=extracted.expert_set,
        timings=executor_pb2.FeatureTimings(**asdict(extracted.timings)),
    )


def generate_response(event: TextDelta | Completed) -> executor_pb2.GenerateResponse:
    """One message of a generation."""
    if isinstance(event, TextDelta):
        return executor_pb2.GenerateResponse(delta=executor_pb2.Delta(**asdict(event)))
    return executor_pb2.GenerateResponse(
        completed=executor_pb2.Completed(
            finish_reason=_FINISH_REASONS[event.finish_reason],
            usage=types_pb2.Usage(**asdict(event.usage)),
            applied=_applied(event.applied),
            timings=executor_pb2.GenerateTimings(**asdict(event.timings)),
        )
    )


def score_response(
    scored: Scored, request: executor_pb2.ScoreRequest
) -> executor_pb2.ScoreResponse:
    """A scoring's answer; the prompt's ids only if they were asked for."""
    return executor_pb2.ScoreResponse(
        token_ids=scored.token_ids,
        log_probabilities=scored.log_probabilities,
        prompt_token_ids=scored.prompt_token_ids if request.return_prompt_token_ids else (),
        usage=types_pb2.Usage(**asdict(scored.usage)),
        applied=_applied(scored.applied),
        timings=executor_pb2.GenerateTimings(**asdict(scored.timings)),
    )


def experts_response(
    experts: Sequence[ExpertState], expert_set: str
) -> executor_pb2.ListExpertsResponse:
    """The list of experts."""
    return executor_pb2.ListExpertsResponse(
        experts=[expert_message(expert) for expert in experts], expert_set=expert_set
    )


def expert_message(expert: ExpertState) -> executor_pb2.Expert:
    """One expert."""
    return executor_pb2.Expert(
        name=expert.identity.name,
        label=expert.label,
        digest=expert.identity.digest,
        generation=expert.identity.generation,
        rank=expert.rank,
        matched_modules=expert.matched_modules,
        targets_vision=expert.targets_vision,
        in_use=expert.in_use,
        task_types=expert.task_types,
    )


def expected_generation(request: admin_pb2.UnloadExpertRequest) -> int | None:
    """The generation to unload; None unloads any."""
    return _optional(request, "expected_generation", request.expected_generation)


def info_response(
    facts: Facts, experts: Sequence[ExpertState], expert_set: str
) -> executor_pb2.GetServerInfoResponse:
    """What runs here."""
    spec = facts.spec
    return executor_pb2.GetServerInfoResponse(
        model=facts.model,
        feature_spec=executor_pb2.FeatureSpec(
            digest=spec.digest,
            text_layer=spec.text_layer,
            text_pooling=spec.text_pooling,
            vision_source=spec.vision_source,
            vision_pooling=spec.vision_pooling,
            text_dim=spec.text_dim,
            vision_dim=spec.vision_dim,
            base_digest=spec.base_digest,
            template_version=spec.template_version,
        ),
        expert_set=expert_set,
        experts=[_identity(expert.identity) for expert in experts],
        device=facts.device,
        dtype=facts.dtype,
        backends=facts.backends,
        limits=executor_pb2.Limits(**asdict(facts.limits)),
        version=version("molora"),
    )


def _instruction(prompt: types_pb2.Prompt) -> Instruction:
    if not prompt.text.strip():
        raise InvalidArgument("EMPTY_PROMPT", "Write an instruction.", field="prompt.text")
    return Instruction(
        text=prompt.text,
        system=_optional(prompt, "system", prompt.system),
        history=tuple(Turn(turn.role, turn.text) for turn in prompt.history),
    )


def _screen(screen: types_pb2.Screen) -> ScreenSource:
    if not screen.data and not screen.context_id:
        raise InvalidArgument(
            "EMPTY_SCREEN", "Send a screenshot's bytes or a context id.", field="screen"
        )
    return ScreenSource(data=screen.data, context_id=screen.context_id)


def _choice(request: RoutedRequest) -> RoutingChoice:
    """The caller's routing, as it is: the core checks that it is one, and its numbers."""
    if request.mode not in _MODES:
        raise InvalidArgument("UNKNOWN_MODE", "Use SOFT, TOP1 or TOP2, or leave it unset.")
    way = request.WhichOneof("routing")
    return RoutingChoice(
        gates=dict(request.gates.weights) if way == "gates" else None,
        layers=_layers(request.gates.layers),
        expert=request.expert if way == "expert" else None,
        base_only=request.base_only,
        mode=_MODES[request.mode],
        masked=tuple(dict.fromkeys(request.masked_experts)),
    )


def _layers(layers: Sequence[types_pb2.LayerGates]) -> Mapping[int, Mapping[str, float]]:
    by_index = {gates.layer: dict(gates.weights) for gates in layers}
    if len(by_index) != len(layers):
        raise InvalidArgument("LAYER_TWICE", "Give every layer's gates once.", field="gates.layers")
    return by_index


def _new_tokens(request: executor_pb2.GenerateRequest, limit: int) -> int:
    if not request.HasField("max_new_tokens"):
        return limit
    if not 1 <= request.max_new_tokens <= limit:
        raise InvalidArgument(
            "BAD_MAX_NEW_TOKENS",
            "max_new_tokens is between 1 and the server's limit.",
            field="max_new_tokens",
            limit=limit,
        )
    return request.max_new_tokens


def _sampling(sampling: types_pb2.Sampling) -> SamplingParams:
    top_p = sampling.top_p if sampling.HasField("top_p") else 1.0
    top_k = _optional(sampling, "top_k", sampling.top_k)
    stop = tuple(sampling.stop)
    _check(math.isfinite(sampling.temperature) and sampling.temperature >= 0, "temperature")
    _check(0 < top_p <= 1, "top_p")
    _check(top_k is None or top_k >= 1, "top_k")
    _check(len(stop) <= MAX_STOP_STRINGS, "stop")
    _check(all(0 < len(string) <= MAX_STOP_CHARS for string in stop), "stop")
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=top_p,
        top_k=top_k,
        seed=_optional(sampling, "seed", sampling.seed),
        stop=stop,
        log_probabilities=sampling.return_log_probabilities,
    )


def _check(usable: bool, field: str) -> None:
    if not usable:
        raise InvalidArgument(
            "BAD_SAMPLING",
            "A sampling value is out of range: temperature is finite and at least 0, top_p in "
            "(0, 1], top_k at least 1, stop at most 16 strings of 1 to 256 characters.",
            field=f"sampling.{field}",
        )


def _optional(message: Message, field: str, value: Value) -> Value | None:
    """The value of a field with presence, None where it is not set."""
    return value if message.HasField(field) else None


def _applied(applied: Applied) -> types_pb2.Applied:
    message = types_pb2.Applied(
        masked_experts=applied.masked,
        experts=[_identity(identity) for identity in applied.active],
        expert_set=applied.expert_set,
        system_prompt_digest=applied.system_prompt_digest,
        mode=_MODES_OUT[applied.mode],
        base_only=applied.base_only,
        vision_reused=applied.vision_reused,
    )
    if not applied.base_only:
        message.gates.CopyFrom(_gates(applied.names, applied.gates))
    return message


def _gates(names: Sequence[str], gates: GateVector) -> types_pb2.Gates:
    """The weights above 0; an expert that is not named has weight 0."""

    def named(weights: Sequence[float]) -> dict[str, float]:
        return {name: weight for name, weight in zip(names, weights, strict=True) if weight > 0}

    return types_pb2.Gates(
        weights=named(gates.weights),
        layers=[
            types_pb2.LayerGates(layer=layer, weights=named(weights))
            for layer, weights in enumerate(gates.layers)
        ],
    )


def _identity(identity: ExpertIdentity) -> types_pb2.ExpertIdentity:
    return types_pb2.ExpertIdentity(**asdict(identity))
