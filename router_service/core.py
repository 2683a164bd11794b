"""The router's nouns: what is asked, what is decided, and of whom.

Knows no file, no gRPC and no rule of the policy; what a bundle states is in `manifest`.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]

# Read by pydantic where a bundle is loaded: a key that nobody knows is an error.
STRICT: dict[str, Any] = {"extra": "forbid"}


class Mode(enum.Enum):
    """How weights are reduced after masking."""

    SOFT = "soft"
    TOP1 = "top1"
    TOP2 = "top2"


class Reason(enum.Enum):
    """Why the gates of a decision are what they are."""

    ROUTER = "router"
    AGENT_FAST_PATH = "agent_fast_path"
    AGENT_ACCEPTED = "agent_accepted"
    AGENT_VETOED = "agent_vetoed"
    TOP2_FALLBACK = "top2_fallback"
    MANUAL_OVERRIDE = "manual_override"
    ABSTAINED = "abstained"


class Abstention(enum.Enum):
    """What happens to a screen that no expert knows."""

    ERROR = "error"
    BASE = "base"
    TOP2 = "top2"


@dataclass(frozen=True)
class Hint:
    """The calling agent's own choice of expert.

    Attributes:
        expert: Its name.
        confidence: The agent's probability that it is right, in [0, 1]; None if it gave none.
        fast_path: The agent asks for the decision without feature extraction.
    """

    expert: str
    confidence: float | None = None
    fast_path: bool = False


@dataclass(frozen=True)
class Options:
    """What a caller may change about one decision; None and empty leave the router's default."""

    mode: Mode | None = None
    temperature: float | None = None
    masked_experts: tuple[str, ...] = ()
    expert_override: str | None = None


@dataclass(frozen=True)
class Features:
    """What the executor extracted from one prompt and screen.

    Attributes:
        text: [text_dim] float32.
        vision: [vision_dim] float32.
        feature_spec: Digest of the feature spec.
        model: Digest of the base model.
        expert_set: Digest of the experts that are loaded.
        context_id: Capability of the executor's cached screen.
    """

    text: Vector
    vision: Vector
    feature_spec: str
    model: str
    expert_set: str
    context_id: str


@dataclass(frozen=True)
class HeadOutput:
    """What the head says about one request.

    Attributes:
        logits: [K] float32, finite, in the order of the bundle's experts.
        distance: How far the screen is from those the experts know, not negative; None where the
            head does not measure it.
        layers: [L, K] float32, finite: logits of each decoder layer, of which `logits` are the
            mean; None where one gate vector is for all of them.
    """

    logits: Vector
    distance: float | None = None
    layers: Vector | None = None


@dataclass(frozen=True)
class Decision:
    """Gates and why.

    Attributes:
        gates: Expert name to weight above 0, float32; the weights sum to 1. Empty where the router
            abstained and the two best experts are not to share.
        probabilities: Expert name to probability, before mask and agent; empty on the fast path.
        reason: Which rule decided.
        confidence: The largest probability; on the fast path the agent's own.
        entropy: Of `probabilities`, in nats.
        abstention: What comes instead; None unless the reason is ABSTAINED.
        distance: The head's, if it was asked and measures one.
        layers: The gates of each decoder layer, of which `gates` are the mean; empty where they are
            the same for all.
    """

    gates: Mapping[str, float]
    probabilities: Mapping[str, float]
    reason: Reason
    confidence: float
    entropy: float
    abstention: Abstention | None = None
    distance: float | None = None
    layers: tuple[Mapping[str, float], ...] = ()


@dataclass(frozen=True)
class ExpertEntry:
    """An expert by content: its name, sha256 (hex) and, if its set has them, integer label."""

    __pydantic_config__: ClassVar[Any] = STRICT

    name: str
    digest: str
    label: int | None = None


@dataclass(frozen=True)
class FeatureSpec:
    """What the features are; a head is only valid for one spec."""

    __pydantic_config__: ClassVar[Any] = STRICT

    text_layer: int
    text_pooling: str
    vision_source: str
    vision_pooling: str
    text_dim: int
    vision_dim: int
    base_digest: str
    template_version: str

    def __post_init__(self) -> None:
        if self.text_dim < 1 or self.vision_dim < 1:
            raise ValueError("text_dim and vision_dim must be at least 1")

    @property
    def digest(self) -> str:
        """sha256 (hex) of the canonical JSON: sorted keys, no spaces."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True)
class LoadedExpert:
    """An expert as an executor has it; the generation counts the loads of its name."""

    name: str
    digest: str
    generation: int


@dataclass(frozen=True)
class ExecutorInfo:
    """What an executor says it runs, by digests; its experts are in expert-set order."""

    model: str
    feature_spec: str
    expert_set: str
    experts: tuple[LoadedExpert, ...]
