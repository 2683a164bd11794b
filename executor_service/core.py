"""The executor's nouns: experts by content, gate vectors, and what a caller asked for.

Knows the rules that turn a request's gates into the ones applied; does not know torch or gRPC.
"""

from __future__ import annotations

import enum
import hashlib
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from executor_service.errors import unknown_expert
from service_chassis.errors import InvalidArgument

SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ExpertIdentity:
    """An expert by content: the digest decides, the name is for people.

    `generation` counts the loads of the name, from 1.
    """

    name: str
    digest: str
    generation: int


def expert_set_digest(identities: Iterable[ExpertIdentity]) -> str:
    """Digest of an ordered set of experts; the generation is no part of it."""
    lines = "".join(f"{expert.name} {expert.digest}\n" for expert in identities)
    return hashlib.sha256(lines.encode()).hexdigest()


@dataclass(frozen=True)
class GateVector:
    """The gates of one row: K weights in expert-set order, float32-exact, finite, not negative.

    `layers` is empty, or holds one K-tuple per LLM decoder layer, which then replaces `weights`
    in the LLM; the vision tower always uses `weights`.
    """

    weights: tuple[float, ...]
    layers: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        for row in (self.weights, *self.layers):
            if len(row) != len(self.weights):
                raise ValueError("every layer needs a gate for every expert")
            if any(not math.isfinite(gate) or gate < 0 or _float32(gate) != gate for gate in row):
                raise ValueError("gates are finite, not negative and float32-exact")

    @classmethod
    def zeros(cls, count: int) -> GateVector:
        """The bare base model beside `count` experts."""
        return cls((0.0,) * count)

    @classmethod
    def one_hot(cls, count: int, index: int) -> GateVector:
        """Expert `index` of `count`, alone and in full."""
        return cls(tuple(float(at == index) for at in range(count)))

    @property
    def active(self) -> tuple[int, ...]:
        """Indices of the experts with a gate above zero anywhere, rising."""
        rows = (self.weights, *self.layers)
        return tuple(at for at in range(len(self.weights)) if any(row[at] > 0 for row in rows))

    @property
    def is_zero(self) -> bool:
        """Whether no expert runs."""
        return not self.active


class RoutingMode(enum.Enum):
    """How gates are reduced after masking."""

    AS_GIVEN = "as_given"
    SOFT = "soft"
    TOP1 = "top1"
    TOP2 = "top2"


_KEPT = {RoutingMode.TOP1: 1, RoutingMode.TOP2: 2}


@dataclass(frozen=True)
class RoutingChoice:
    """What a caller asked for: exactly one of `gates`, `expert` and `base_only`.

    `layers` maps a decoder layer to its own gates and goes with `gates` only.
    """

    gates: Mapping[str, float] | None = None
    layers: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    expert: str | None = None
    base_only: bool = False
    mode: RoutingMode = RoutingMode.AS_GIVEN
    masked: tuple[str, ...] = ()


def resolve_gates(choice: RoutingChoice, experts: Sequence[str], num_layers: int) -> GateVector:
    """The gates to apply: checked, then masked, then reduced by mode, then divided by their sum.

    Args:
        choice: What the caller asked for.
        experts: Names of the loaded experts, in expert-set order.
        num_layers: LLM decoder layers of the model.

    Returns:
        One gate vector over `experts`.

    Raises:
        InvalidArgument: No routing or more than one; gates that are not finite, negative or do
            not sum to 1 within 1e-3; layer gates for some layers only or for a layer that does
            not exist; nothing left after masking; the requested expert is masked.
        NotFound: UNKNOWN_EXPERT, in gates, mask or `expert`.
    """
    _check_exactly_one(choice)
    masked = {_index(name, experts) for name in choice.masked}
    if choice.base_only:
        return GateVector.zeros(len(experts))
    if choice.expert is not None:
        index = _index(choice.expert, experts)
        if index in masked:
            raise _nothing_left()
        return GateVector.one_hot(len(experts), index)
    assert choice.gates is not None
    weights = _resolve_row(choice.gates, experts, masked, choice.mode)
    if not choice.layers:
        return GateVector(weights)
    if set(choice.layers) != set(range(num_layers)):
        raise InvalidArgument(
            "LAYER_GATES_INCOMPLETE",
            "Layer gates name every decoder layer exactly once, or none.",
            field="gates.layers",
            num_layers=num_layers,
        )
    rows = (choice.layers[layer] for layer in range(num_layers))
    return GateVector(
        weights, tuple(_resolve_row(row, experts, masked, choice.mode) for row in rows)
    )


def _check_exactly_one(choice: RoutingChoice) -> None:
    asked = (choice.gates is not None) + (choice.expert is not None) + choice.base_only
    if asked == 0:
        raise InvalidArgument(
            "ROUTING_MISSING", "Say gates, expert or base_only; nothing is chosen for you."
        )
    if asked > 1 or (choice.layers and choice.gates is None):
        raise InvalidArgument(
            "ROUTING_AMBIGUOUS", "Say exactly one of gates, expert and base_only."
        )


def _resolve_row(
    gates: Mapping[str, float], experts: Sequence[str], masked: set[int], mode: RoutingMode
) -> tuple[float, ...]:
    row = _checked_row(gates, experts)
    row = [0.0 if at in masked else gate for at, gate in enumerate(row)]
    if mode in _KEPT:
        # sorted() is stable: among equals the earlier expert wins.
        ranked = sorted(range(len(row)), key=lambda at: -row[at])[: _KEPT[mode]]
        row = [gate if at in ranked else 0.0 for at, gate in enumerate(row)]
    total = math.fsum(row)
    if total <= 0:
        raise _nothing_left()
    return tuple(_float32(gate / total) for gate in row)


def _checked_row(gates: Mapping[str, float], experts: Sequence[str]) -> list[float]:
    row = [0.0] * len(experts)
    for name, gate in gates.items():
        row[_index(name, experts)] = gate
    if any(not math.isfinite(gate) for gate in row):
        raise InvalidArgument("GATES_NOT_FINITE", "Gates are finite numbers.", field="gates")
    if any(gate < 0 for gate in row):
        raise InvalidArgument("GATES_NEGATIVE", "Gates are not negative.", field="gates")
    if abs(math.fsum(row) - 1) > SUM_TOLERANCE:
        raise InvalidArgument(
            "GATES_SUM",
            "Gates sum to 1; divide them by their sum.",
            field="gates",
            tolerance=SUM_TOLERANCE,
        )
    return row


def _index(name: str, experts: Sequence[str]) -> int:
    try:
        return experts.index(name)
    except ValueError:
        raise unknown_expert(name) from None


def _nothing_left() -> InvalidArgument:
    return InvalidArgument(
        "NOTHING_LEFT", "The mask leaves no expert with a gate; mask fewer.", field="masked_experts"
    )


def _float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])
