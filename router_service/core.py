"""The router's nouns: what is asked, what is decided, and what a bundle states.

Knows no file, no gRPC and no rule of the policy.
"""

from __future__ import annotations

import enum
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]

# Read by pydantic where a bundle is loaded: a key that nobody knows is an error.
_STRICT: dict[str, Any] = {"extra": "forbid"}


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
class Decision:
    """Gates and why.

    Attributes:
        gates: Expert name to weight above 0, float32; the weights sum to 1.
        probabilities: Expert name to probability, before mask and agent; empty on the fast path.
        reason: Which rule decided.
        confidence: The largest probability; on the fast path the agent's own.
        entropy: Of `probabilities`, in nats.
    """

    gates: Mapping[str, float]
    probabilities: Mapping[str, float]
    reason: Reason
    confidence: float
    entropy: float


@dataclass(frozen=True)
class ExpertEntry:
    """An expert by content: its name, sha256 (hex) and, if its set has them, integer label."""

    __pydantic_config__: ClassVar = _STRICT

    name: str
    digest: str
    label: int | None = None


@dataclass(frozen=True)
class FeatureSpec:
    """What the features are; a head is only valid for one spec."""

    __pydantic_config__: ClassVar = _STRICT

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


@dataclass(frozen=True)
class Threshold:
    """A probability that a rule compares with, and where the number comes from.

    Attributes:
        value: In [0, 1].
        source: `typed` (somebody's choice) or `fitted` (found on held-out data).
        why: For the operator.
    """

    __pydantic_config__: ClassVar = _STRICT

    value: float
    source: str
    why: str

    def __post_init__(self) -> None:
        if not 0 <= self.value <= 1:
            raise ValueError("a threshold must be in [0, 1]")
        if self.source not in ("typed", "fitted"):
            raise ValueError("a threshold's source must be typed or fitted")


@dataclass(frozen=True)
class Thresholds:
    """Where the agent's word counts.

    Attributes:
        agent_fast_path: Agent's confidence from which it is answered without looking.
        agent_accept: Agent's confidence from which it outweighs a head that is not sure.
        agent_veto: Head's confidence from which it overrules an agent that disagrees.
    """

    __pydantic_config__: ClassVar = _STRICT

    agent_fast_path: Threshold
    agent_accept: Threshold
    agent_veto: Threshold


@dataclass(frozen=True)
class TemperatureSetting:
    """The softmax temperature in force, and why."""

    __pydantic_config__: ClassVar = _STRICT

    value: float
    why: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value > 0):
            raise ValueError("the temperature must be finite and above 0")


@dataclass(frozen=True)
class ModeSetting:
    """The mode in force, and why."""

    __pydantic_config__: ClassVar = _STRICT

    value: Mode
    why: str


@dataclass(frozen=True)
class Calibration:
    """How the temperature was found.

    Attributes:
        method: Name of the method.
        cases: Held-out cases it was fitted on.
        log_loss_before: Mean negative log-likelihood in nats at temperature 1.
        log_loss_after: The same at the fitted temperature.
        ece_before: Expected calibration error at temperature 1.
        ece_after: The same at the fitted temperature.
    """

    __pydantic_config__: ClassVar = _STRICT

    method: str
    cases: int
    log_loss_before: float
    log_loss_after: float
    ece_before: float
    ece_after: float


@dataclass(frozen=True)
class Provenance:
    """Where a head comes from; the same inputs and seed give the same head.

    Attributes:
        seed: Of splits, weights and batches.
        dataset_digest: sha256 of the records it was trained on.
        expert_set: Digest of the experts that were loaded when the features were extracted.
        cases: Split name to number of cases; splits are by image.
        accuracy: Split name to accuracy.
        config: The training configuration.
        tools: Library name to version.
    """

    __pydantic_config__: ClassVar = _STRICT

    seed: int
    dataset_digest: str
    expert_set: str
    cases: Mapping[str, int]
    accuracy: Mapping[str, float]
    config: Mapping[str, float | int | str]
    tools: Mapping[str, str]


@dataclass(frozen=True)
class Manifest:
    """What `router.json` states; `experts` are in the order of the head's logits."""

    __pydantic_config__: ClassVar = _STRICT

    format: int
    head_sha256: str
    opset: int
    experts: tuple[ExpertEntry, ...]
    feature_spec: FeatureSpec
    feature_spec_digest: str
    temperature: TemperatureSetting
    mode: ModeSetting
    thresholds: Thresholds
    calibration: Calibration
    provenance: Provenance

    def __post_init__(self) -> None:
        if self.format != 1:
            raise ValueError("format must be 1; export the bundle again with this version")
        if not self.experts:
            raise ValueError("experts must not be empty")
        for part in ("name", "digest"):
            if len({getattr(expert, part) for expert in self.experts}) < len(self.experts):
                raise ValueError(f"two experts have the same {part}")
        if self.feature_spec_digest != self.feature_spec.digest:
            raise ValueError("feature_spec_digest is not the digest of feature_spec")
