"""The nouns a caller hands in. Knows neither gRPC nor protobuf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from molora_client.errors import InvalidArgumentError


class RoutingMode(str, Enum):
    """How gates are reduced after masking."""

    SOFT = "soft"
    TOP1 = "top1"
    TOP2 = "top2"


@dataclass(frozen=True)
class Turn:
    """One earlier turn of the conversation; `role` is `user` or `assistant`."""

    role: str
    text: str


@dataclass(frozen=True)
class Prompt:
    """What is asked about the screen. Text is literal: special tokens in it are characters.

    `system` replaces the system prompt of the expert with the highest applied gate.
    """

    text: str
    system: str | None = None
    history: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class ContextRef:
    """A screen that a replica holds already.

    Attributes:
        context_id: The capability; empty if the replica holds nothing and `data` must be sent.
        executor: Address of that replica; empty for the client's configured executor.
        data: The screen's bytes, sent once if the context has expired.
    """

    context_id: str = field(repr=False)
    executor: str = ""
    data: bytes | None = field(default=None, repr=False)


Screen = bytes | Path | ContextRef


@dataclass(frozen=True)
class AgentHint:
    """The calling agent's own choice of expert; `confidence` is in [0, 1]."""

    expert: str
    confidence: float | None = None
    fast_path: bool | None = None


@dataclass(frozen=True)
class RoutingOptions:
    """What a caller may change about one decision; unset fields keep the router's defaults."""

    mode: RoutingMode | None = None
    temperature: float | None = None
    masked_experts: tuple[str, ...] = ()
    expert_override: str | None = None


@dataclass(frozen=True)
class Sampling:
    """Decoding parameters; everything unset is greedy."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    return_log_probabilities: bool = False


@dataclass(frozen=True)
class Gating:
    """Which experts run: exactly one of `gates`, `expert` and `base_only`.

    Attributes:
        gates: Expert name to weight; the weights sum to 1.
        layer_gates: LLM decoder layer to its own weights, for all layers or none; with `gates`.
        expert: This expert alone.
        base_only: No expert at all.
        mode: Reduces the gates after masking; None uses them as given.
        masked_experts: Experts that must contribute nothing.
        expert_set: Digest the decision was made against; ABORTED if others are loaded by now.
    """

    gates: Mapping[str, float] | None = None
    layer_gates: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    expert: str | None = None
    base_only: bool = False
    mode: RoutingMode | None = None
    masked_experts: tuple[str, ...] = ()
    expert_set: str | None = None

    def __post_init__(self) -> None:
        given = [self.gates is not None, self.expert is not None, self.base_only]
        if sum(given) != 1:
            # Two of them would overwrite each other on the wire, where they are a oneof.
            raise InvalidArgumentError(
                "give exactly one of gates, expert and base_only", reason="ONE_ROUTING_CHOICE"
            )
