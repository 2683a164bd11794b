import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor_service.core import (
    ExpertIdentity,
    GateVector,
    RoutingChoice,
    RoutingMode,
    expert_set_digest,
    resolve_gates,
)
from service_chassis.errors import InvalidArgument, NotFound, ServiceError

EXPERTS = ("a", "b", "c")


def resolve(num_layers: int = 2, **choice: object) -> GateVector:
    return resolve_gates(RoutingChoice(**choice), EXPERTS, num_layers)


def refused(kind: type[ServiceError], **choice: object) -> str:
    with pytest.raises(kind) as error:
        resolve(**choice)
    return error.value.reason


def test_gates_are_given_in_expert_set_order_and_divided_by_their_sum():
    gates = resolve(gates={"c": 0.75, "a": 0.2505})
    assert gates.weights[1] == 0
    assert gates.weights[0] == pytest.approx(0.2505 / 1.0005)
    assert sum(gates.weights) == pytest.approx(1, abs=1e-7)
    assert gates.active == (0, 2)


def test_mask_comes_before_mode_before_division():
    gates = {"a": 0.5, "b": 0.3, "c": 0.2}
    assert resolve(gates=gates, mode=RoutingMode.TOP1, masked=("a",)).weights == (0, 1, 0)
    top2 = resolve(gates=gates, mode=RoutingMode.TOP2).weights
    assert top2 == pytest.approx((0.625, 0.375, 0))
    masked = resolve(gates=gates, mode=RoutingMode.SOFT, masked=("a", "a"))
    assert masked.weights == pytest.approx((0, 0.6, 0.4))


def test_ties_go_to_the_earlier_expert():
    gates = {"a": 0.2, "b": 0.4, "c": 0.4}
    assert resolve(gates=gates, mode=RoutingMode.TOP1).weights == (0, 1, 0)


def test_expert_and_base():
    assert resolve(expert="b") == GateVector.one_hot(3, 1)
    assert resolve(base_only=True).is_zero
    assert resolve(base_only=True, masked=("a",)) == GateVector.zeros(3)


def test_layer_gates_are_resolved_layer_by_layer():
    gates = resolve(
        gates={"a": 1.0},
        layers={0: {"b": 0.6, "c": 0.4}, 1: {"a": 0.5, "c": 0.5}},
        mode=RoutingMode.TOP1,
        masked=("b",),
    )
    assert gates.weights == (1, 0, 0)
    assert gates.layers == ((0, 0, 1), (1, 0, 0))
    assert gates.active == (0, 2)


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ({}, "ROUTING_MISSING"),
        ({"expert": "a", "base_only": True}, "ROUTING_AMBIGUOUS"),
        ({"gates": {"a": 1.0}, "expert": "a"}, "ROUTING_AMBIGUOUS"),
        ({"base_only": True, "layers": {0: {"a": 1.0}}}, "ROUTING_AMBIGUOUS"),
        ({"gates": {}}, "GATES_SUM"),
        ({"gates": {"a": 0.0}}, "GATES_SUM"),
        ({"gates": {"a": 0.998}}, "GATES_SUM"),
        ({"gates": {"a": 1.5, "b": -0.5}}, "GATES_NEGATIVE"),
        ({"gates": {"a": math.nan}}, "GATES_NOT_FINITE"),
        ({"gates": {"a": math.inf}}, "GATES_NOT_FINITE"),
        ({"gates": {"a": 1.0}, "masked": ("a",)}, "NOTHING_LEFT"),
        ({"gates": {"a": 1.0}, "masked": EXPERTS}, "NOTHING_LEFT"),
        ({"expert": "a", "masked": ("a",)}, "NOTHING_LEFT"),
        ({"gates": {"a": 1.0}, "layers": {0: {"a": 1.0}}}, "LAYER_GATES_INCOMPLETE"),
        (
            {"gates": {"a": 1.0}, "layers": {0: {"a": 1.0}, 7: {"a": 1.0}}},
            "LAYER_GATES_INCOMPLETE",
        ),
        ({"gates": {"a": 1.0}, "layers": {0: {"a": 1.0}, 1: {"b": 0.5}}}, "GATES_SUM"),
    ],
)
def test_what_is_refused(choice, reason):
    assert refused(InvalidArgument, **choice) == reason


@pytest.mark.parametrize(
    "choice",
    [
        {"expert": "x"},
        {"gates": {"a": 0.5, "x": 0.5}},
        {"expert": "a", "masked": ("x",)},
        {"base_only": True, "masked": ("x",)},
        {"gates": {"a": 1.0}, "layers": {0: {"a": 1.0}, 1: {"x": 1.0}}},
    ],
)
def test_unknown_experts(choice):
    assert refused(NotFound, **choice) == "UNKNOWN_EXPERT"


@given(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3))
def test_resolved_gates_are_float32_and_sum_to_one(raw):
    total = math.fsum(raw)
    if not 0.999 <= total <= 1.001:
        return
    weights = resolve(gates=dict(zip(EXPERTS, raw, strict=True))).weights
    assert all(struct.unpack("f", struct.pack("f", gate))[0] == gate for gate in weights)
    assert math.fsum(weights) == pytest.approx(1, abs=1e-6)
    assert [gate > 0 for gate in weights] == [gate > 0 for gate in raw]


@pytest.mark.parametrize("weights", [(0.1,), (math.nan,), (-1.0,), (math.inf,)])
def test_a_gate_vector_refuses_what_a_layer_could_not_apply_exactly(weights):
    with pytest.raises(ValueError, match="float32"):
        GateVector(weights)


def test_a_gate_vector_refuses_ragged_layers():
    with pytest.raises(ValueError, match="every layer"):
        GateVector((1.0, 0.0), ((1.0,),))


def test_expert_set_digest_is_that_of_its_lines():
    # printf 'a 11\nb 22\n' | sha256sum
    digest = "286ac3fb2fd8d1438239bb3927d8f20be194666e96d94bcf634a898399fe444c"
    first, second = ExpertIdentity("a", "11", 1), ExpertIdentity("b", "22", 1)
    assert expert_set_digest([first, second]) != expert_set_digest([second, first])
    assert expert_set_digest([first, ExpertIdentity("b", "22", 9)]) == expert_set_digest(
        [first, second]
    )
    assert expert_set_digest([first, second]) == digest
