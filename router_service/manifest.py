"""What a router bundle states about itself: the nouns of `router.json`.

Knows no file and no rule; each number says where it comes from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from router_service.core import STRICT, ExpertEntry, FeatureSpec, Mode


@dataclass(frozen=True)
class Threshold:
    """A probability that a rule compares with, and where the number comes from.

    Attributes:
        value: In [0, 1]; None where no value was shown to be safe, so that the rule never decides.
        source: `typed` (somebody's choice) or `fitted` (found on held-out data).
        why: For the operator.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    value: float | None
    source: str
    why: str

    def __post_init__(self) -> None:
        if self.value is not None and not 0 <= self.value <= 1:
            raise ValueError("a threshold must be in [0, 1]")
        if self.source not in ("typed", "fitted"):
            raise ValueError("a threshold's source must be typed or fitted")

    def reached_by(self, probability: float | None) -> bool:
        """Whether a rule with this threshold decides; a probability that is not known does not."""
        return self.value is not None and probability is not None and probability >= self.value


@dataclass(frozen=True)
class Thresholds:
    """Where the agent's word counts.

    Attributes:
        agent_fast_path: Agent's confidence from which it is answered without looking.
        agent_accept: Pooled probability of the agent's expert from which it gets the request
            although the head prefers another.
        agent_veto: Pooled probability of the head's expert from which it gets the request although
            the agent names another.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    agent_fast_path: Threshold
    agent_accept: Threshold
    agent_veto: Threshold


@dataclass(frozen=True)
class AgentModel:
    """What is known of the agent that gives hints.

    Attributes:
        weight: Exponent of the agent's distribution where it is pooled with the head's.
        reliability: Share of its hints that were right; stands in where a hint has no confidence.
        ceiling: The largest confidence that is believed.
        source: `measured` (on records with an agent's hints) or `simulated`.
        why: For the operator.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    weight: float
    reliability: float
    ceiling: float
    source: str
    why: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError("the agent's weight must be finite and not negative")
        if not 0 <= self.reliability <= 1:
            raise ValueError("the agent's reliability must be in [0, 1]")
        # At 1, an agent and a head that exclude each other's expert would leave nothing to pool;
        # at less than 0.5, it could be less than an even share of two.
        if not 0.5 <= self.ceiling < 1:
            raise ValueError("the agent's ceiling must be in [0.5, 1)")
        if self.source not in ("measured", "simulated"):
            raise ValueError("the agent's source must be measured or simulated")


@dataclass(frozen=True)
class AbstentionRule:
    """From which distance on no expert knows a screen.

    Attributes:
        threshold: A larger distance is abstained from; None: none is.
        source: `typed` or `fitted`.
        why: For the operator.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    threshold: float | None
    source: str
    why: str

    def __post_init__(self) -> None:
        if self.threshold is not None and not (
            math.isfinite(self.threshold) and self.threshold >= 0
        ):
            raise ValueError("the distance to abstain from must be finite and not negative")
        if self.source not in ("typed", "fitted"):
            raise ValueError("the abstention's source must be typed or fitted")


@dataclass(frozen=True)
class Fit:
    """The data and the bound behind everything in the bundle whose source is `fitted`.

    Attributes:
        dataset_digest: sha256 of the records.
        cases: Held-out cases, one an image.
        max_risk: The largest share of wrong decisions that a threshold may let through.
        max_refused: The largest share of known screens that may be abstained from.
        confidence: Of the bound on `max_risk`.
        seed: Of the choice of cases, and of a simulated agent.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    dataset_digest: str
    cases: int
    max_risk: float
    max_refused: float
    confidence: float
    seed: int


@dataclass(frozen=True)
class TemperatureSetting:
    """The softmax temperature in force, and why."""

    __pydantic_config__: ClassVar[Any] = STRICT

    value: float
    why: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value > 0):
            raise ValueError("the temperature must be finite and above 0")


@dataclass(frozen=True)
class ModeSetting:
    """The mode in force, and why."""

    __pydantic_config__: ClassVar[Any] = STRICT

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

    __pydantic_config__: ClassVar[Any] = STRICT

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
        known_digest: sha256 of the records whose screens are known; empty: those it was trained on.
        expert_set: Digest of the experts that were loaded when the features were extracted.
        cases: Split name to number of cases; splits are by image.
        accuracy: Split name to accuracy.
        config: The training configuration.
        tools: Library name to version.
        shown_sha256: Of `shown.safetensors`, the images that the head was shown; empty: not known.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    seed: int
    dataset_digest: str
    expert_set: str
    cases: Mapping[str, int]
    accuracy: Mapping[str, float]
    config: Mapping[str, float | int | str]
    tools: Mapping[str, str]
    known_digest: str = ""
    shown_sha256: str = ""


@dataclass(frozen=True)
class Manifest:
    """What `router.json` states; `experts` are in the order of the head's logits.

    `agent`, `abstention` and `fit` are missing until thresholds are fitted: an agent of which
    nothing is known then has no weight, and no screen is abstained from. `layers` are the decoder
    layers that the head has logits of their own for; 0: one gate vector is for all of them.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

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
    agent: AgentModel | None = None
    abstention: AbstentionRule | None = None
    fit: Fit | None = None
    layers: int = 0

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
