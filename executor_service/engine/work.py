"""The engine's nouns: what is asked of it and what it answers.

Knows no protobuf, no tensor and no thread.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from executor_service.core import ExpertIdentity, GateVector, RoutingChoice, RoutingMode
from executor_service.model.prompt import Turn

if TYPE_CHECKING:
    from executor_service.model.features import FeatureSpec


@dataclass(frozen=True)
class Instruction:
    """What is asked about a screen; `system` is None where the expert's or the server's is used."""

    text: str = field(repr=False)
    system: str | None = field(default=None, repr=False)
    history: tuple[Turn, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class ScreenSource:
    """A screenshot: a file's bytes, or the id of a held context. Exactly one is not empty."""

    data: bytes = field(default=b"", repr=False)
    context_id: str = field(default="", repr=False)


@dataclass(frozen=True)
class SamplingParams:
    """Decoding parameters; the defaults are greedy.

    Attributes:
        temperature: 0 is greedy.
        top_p: Nucleus mass, in (0, 1].
        top_k: Keep this many of the likeliest tokens; None keeps all.
        seed: None draws one.
        stop: Strings before which the answer ends.
        log_probabilities: Whether each token's is wanted.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = field(default=(), repr=False)
    log_probabilities: bool = False


@dataclass(frozen=True)
class FeaturesAsk:
    """ExtractFeatures."""

    instruction: Instruction
    screen: ScreenSource


@dataclass(frozen=True)
class GenerateAsk:
    """Generate. `expert_set` is the digest the caller routed against, if it says so."""

    instruction: Instruction
    screen: ScreenSource
    choice: RoutingChoice
    expert_set: str | None
    max_new_tokens: int
    sampling: SamplingParams


@dataclass(frozen=True)
class ScoreAsk:
    """Score."""

    instruction: Instruction
    screen: ScreenSource
    choice: RoutingChoice
    expert_set: str | None
    completion: str = field(repr=False)


class FinishReason(enum.Enum):
    """Why an answer ended."""

    STOP = enum.auto()
    LENGTH = enum.auto()
    STOP_STRING = enum.auto()


@dataclass(frozen=True)
class TextDelta:
    """Newly decoded text and the tokens that it ends, with their log-probabilities if wanted."""

    text: str = field(repr=False)
    token_ids: tuple[int, ...] = field(repr=False)
    log_probabilities: tuple[float, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Usage:
    """Token counts.

    Attributes:
        prompt_tokens: Of the whole prompt.
        image_tokens: Those of them that stand for the screen.
        cached_prompt_tokens: Those of them that were not computed again.
        completion_tokens: Of the answer, its end of turn included.
    """

    prompt_tokens: int
    image_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Timings:
    """Where the time of a generation or a scoring went, in milliseconds.

    `vision_ms` holds decoding of the screen and the vision tower; scoring has no decode.
    """

    queue_ms: float
    vision_ms: float
    prefill_ms: float
    decode_ms: float
    time_to_first_token_ms: float
    total_ms: float


@dataclass(frozen=True)
class FeatureTimings:
    """Where the time of an extraction went, in milliseconds."""

    queue_ms: float
    vision_ms: float
    text_ms: float
    total_ms: float


@dataclass(frozen=True)
class Applied:
    """What really ran.

    Attributes:
        names: All experts of the set, in its order; the order of `gates`.
        gates: The gates used, after mask and mode.
        active: The experts with a gate above 0, in expert-set order.
        masked: Experts that were masked, as asked.
        mode: What reduced the gates.
        base_only: Whether the caller asked for no expert at all.
        expert_set: Digest of the set.
        system_prompt_digest: sha256 of the system prompt, hex.
        vision_reused: Whether the vision output of a context was used as it is.
    """

    names: tuple[str, ...]
    gates: GateVector
    active: tuple[ExpertIdentity, ...]
    masked: tuple[str, ...]
    mode: RoutingMode
    base_only: bool
    expert_set: str
    system_prompt_digest: str
    vision_reused: bool


@dataclass(frozen=True)
class Completed:
    """The end of an answer."""

    finish_reason: FinishReason
    usage: Usage
    applied: Applied
    timings: Timings


@dataclass(frozen=True)
class Scored:
    """Log-probabilities (natural) of a completion's tokens, end of turn included."""

    token_ids: tuple[int, ...] = field(repr=False)
    log_probabilities: tuple[float, ...]
    prompt_token_ids: tuple[int, ...] = field(repr=False)
    usage: Usage
    applied: Applied
    timings: Timings


@dataclass(frozen=True)
class Extracted:
    """Features of a prompt and screen: text [text_dim], vision [vision_dim]."""

    context_id: str = field(repr=False)
    text: tuple[float, ...] = field(repr=False)
    vision: tuple[float, ...] = field(repr=False)
    feature_spec: str
    model: str
    expert_set: str
    timings: FeatureTimings


@dataclass(frozen=True)
class ExpertState:
    """One loaded expert, as it is listed; `in_use` counts requests that hold it now."""

    identity: ExpertIdentity
    label: int | None
    rank: int
    matched_modules: int
    targets_vision: bool
    in_use: int
    task_types: tuple[str, ...]


@dataclass(frozen=True)
class Limits:
    """What the server accepts."""

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
class Facts:
    """What is true of this engine until it ends.

    Attributes:
        model: Digest of the base model.
        spec: What its features are.
        device: Where the model lives.
        dtype: What it computes in.
        backends: Choices made at start, by name.
        limits: What is accepted.
    """

    model: str
    spec: FeatureSpec
    device: str
    dtype: str
    backends: dict[str, str]
    limits: Limits
