"""The nouns a caller gets back. Knows neither gRPC nor protobuf.

Fields are named as in the contract (`protos/molora/v1`); times are milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from molora_client.inputs import ContextRef, RoutingMode


class DecisionReason(str, Enum):
    """Why the gates of a decision are what they are."""

    UNSPECIFIED = "UNSPECIFIED"
    ROUTER = "ROUTER"
    AGENT_FAST_PATH = "AGENT_FAST_PATH"
    AGENT_ACCEPTED = "AGENT_ACCEPTED"
    AGENT_VETOED = "AGENT_VETOED"
    TOP2_FALLBACK = "TOP2_FALLBACK"
    MANUAL_OVERRIDE = "MANUAL_OVERRIDE"
    ABSTAINED = "ABSTAINED"


class AbstentionOutcome(str, Enum):
    """What a router does about a screen that no expert knows."""

    ERROR = "ERROR"
    BASE = "BASE"
    TOP2 = "TOP2"


class FinishReason(str, Enum):
    """Why a generation ended."""

    UNSPECIFIED = "UNSPECIFIED"
    STOP = "STOP"
    LENGTH = "LENGTH"
    STOP_STRING = "STOP_STRING"


@dataclass(frozen=True)
class RouteTimings:
    """Where a decision's time went."""

    features_ms: float
    head_ms: float
    total_ms: float


@dataclass(frozen=True)
class FeatureTimings:
    """Where an extraction's time went."""

    queue_ms: float
    vision_ms: float
    text_ms: float
    total_ms: float


@dataclass(frozen=True)
class GenerateTimings:
    """Where a generation's time went."""

    queue_ms: float
    vision_ms: float
    prefill_ms: float
    decode_ms: float
    time_to_first_token_ms: float
    total_ms: float


@dataclass(frozen=True)
class Usage:
    """Token counts; image tokens, and those kept from earlier requests, are of the prompt's."""

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int


@dataclass(frozen=True)
class ExpertIdentity:
    """An expert by content; the generation counts the loads of its name."""

    name: str
    digest: str
    generation: int


@dataclass(frozen=True)
class Routed:
    """What the router decided, and where the screen's context waits.

    Attributes:
        gates: Expert name to weight, final; empty on AbstentionOutcome.BASE.
        layer_gates: LLM decoder layer to its own weights, if the router decides by layer.
        probabilities: Softmax of the head, before mask and agent; empty on AGENT_FAST_PATH.
        confidence: The largest probability; on AGENT_FAST_PATH the agent's own.
        entropy: Of `probabilities`, in nats.
        expert_set: Digest of the experts the decision was made against.
        context: Hand it to `generate` as the screen.
        abstention: On ABSTAINED, what comes instead: BASE means `generate(base_only=True)`.
        distance: How far the screen is from those the experts know; None if it is not measured.
    """

    gates: dict[str, float]
    layer_gates: dict[int, dict[str, float]]
    probabilities: dict[str, float]
    reason: DecisionReason
    confidence: float
    entropy: float
    expert_set: str
    router_version: str
    context: ContextRef
    timings: RouteTimings
    request_id: str
    abstention: AbstentionOutcome | None = None
    distance: float | None = None

    @property
    def context_id(self) -> str:
        """Capability of the held screen; empty on AGENT_FAST_PATH."""
        return self.context.context_id

    @property
    def executor(self) -> str:
        """Address of the replica that holds the context; empty if the router did not say."""
        return self.context.executor


@dataclass(frozen=True)
class Applied:
    """What really ran, as the executor states it."""

    gates: dict[str, float]
    layer_gates: dict[int, dict[str, float]]
    masked_experts: tuple[str, ...]
    experts: tuple[ExpertIdentity, ...]
    expert_set: str
    system_prompt_digest: str
    mode: RoutingMode | None
    base_only: bool
    vision_reused: bool


@dataclass(frozen=True)
class Generation:
    """A complete answer.

    `log_probabilities` (natural, before temperature) has one for each token if they were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    applied: Applied
    timings: GenerateTimings
    request_id: str
    log_probabilities: tuple[float, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """A decision and the complete answer generated under it."""

    routed: Routed
    generation: Generation

    @property
    def text(self) -> str:
        """The answer."""
        return self.generation.text

    @property
    def applied(self) -> Applied:
        """What really ran."""
        return self.generation.applied


@dataclass(frozen=True)
class Scored:
    """Log-probabilities of a given completion, end of turn included, natural log."""

    token_ids: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    prompt_token_ids: tuple[int, ...]
    usage: Usage
    applied: Applied
    timings: GenerateTimings
    request_id: str


@dataclass(frozen=True)
class Features:
    """What the router sees of a prompt and screen: text [text_dim] and vision [vision_dim]."""

    text: tuple[float, ...]
    vision: tuple[float, ...]
    feature_spec: str
    model: str
    expert_set: str
    context: ContextRef
    timings: FeatureTimings
    request_id: str


@dataclass(frozen=True)
class Expert:
    """One loaded expert; `rank` is the largest over its modules, `in_use` counts requests."""

    name: str
    label: int | None
    digest: str
    generation: int
    rank: int
    matched_modules: int
    targets_vision: bool
    in_use: int
    task_types: tuple[str, ...]


@dataclass(frozen=True)
class Experts:
    """The loaded experts in expert-set order, and the set's digest."""

    experts: tuple[Expert, ...]
    expert_set: str


@dataclass(frozen=True)
class ExpertChange:
    """The expert that an admin call loaded or removed, and the set's digest after it."""

    expert: Expert
    expert_set: str


@dataclass(frozen=True)
class FeatureSpec:
    """What the features are; a router's head is only valid for one digest."""

    digest: str
    text_layer: int
    text_pooling: str
    vision_source: str
    vision_pooling: str
    text_dim: int
    vision_dim: int
    base_digest: str
    template_version: str


@dataclass(frozen=True)
class Limits:
    """What the executor accepts."""

    max_prompt_tokens: int
    max_new_tokens: int
    max_screen_bytes: int
    max_screen_pixels: int
    max_context_bytes: int
    context_ttl_seconds: int
    queue_length: int
    slots: int
    slot_tokens: int
    prefill_chunk_tokens: int


@dataclass(frozen=True)
class ServerInfo:
    """What an executor runs."""

    model: str
    feature_spec: FeatureSpec
    expert_set: str
    experts: tuple[ExpertIdentity, ...]
    device: str
    dtype: str
    backends: dict[str, str]
    limits: Limits
    version: str


@dataclass(frozen=True)
class AgentModel:
    """How far the router believes the agent; see `AgentModel` in the contract."""

    weight: float
    reliability: float
    ceiling: float
    reason: str


@dataclass(frozen=True)
class RouterInfo:
    """The bundle and the policy in force; `experts` are in the order of the head's logits.

    A threshold that `threshold_reasons` names and `thresholds` does not is never reached. Without
    an `agent`, hints have no weight.
    """

    router_version: str
    feature_spec: str
    expert_set: str
    experts: tuple[ExpertIdentity, ...]
    mode: RoutingMode | None
    mode_reason: str
    temperature: float
    temperature_reason: str
    thresholds: dict[str, float]
    serving: bool
    not_serving_reason: str
    executor: str
    version: str
    threshold_reasons: dict[str, str]
    abstention: AbstentionOutcome | None
    agent: AgentModel | None
