"""The policy's rules and its laws: sums, masks, permutations, temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_service.core import (
    Decision,
    Hint,
    Mode,
    ModeSetting,
    Options,
    Reason,
    TemperatureSetting,
    Threshold,
    Thresholds,
)
from router_service.policy import Policy, PolicyConfig
from service_chassis.errors import InvalidArgument, NotFound

FAST, ACCEPT, VETO = 0.95, 0.8, 0.9
NAMES = ("a", "b", "c", "d")


def policy(names: tuple[str, ...] = NAMES, mode: Mode = Mode.TOP1) -> Policy:
    limits = [Threshold(value, "typed", "test") for value in (FAST, ACCEPT, VETO)]
    return Policy(
        PolicyConfig(
            names, ModeSetting(mode, "test"), TemperatureSetting(1.0, "test"), Thresholds(*limits)
        )
    )


def decide(
    logits: Sequence[float],
    hint: Hint | None = None,
    options: Options | None = None,
    rules: Policy | None = None,
) -> Decision:
    rules = rules or policy(NAMES[: len(logits)])
    ask = rules.check(hint, options or Options())
    return rules.without_features(ask) or rules.decide(ask, np.array(logits, np.float32))


def logits_of(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


class TestRules:
    def test_the_head_alone(self) -> None:
        decision = decide(logits_of(0.2, 0.7, 0.1))
        assert decision.reason is Reason.ROUTER
        assert decision.gates == {"b": 1.0}
        assert decision.probabilities == pytest.approx({"a": 0.2, "b": 0.7, "c": 0.1})
        assert decision.confidence == pytest.approx(0.7)
        expected = -sum(p * math.log(p) for p in (0.2, 0.7, 0.1))
        assert decision.entropy == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("mode", "gates"),
        [
            (Mode.SOFT, {"a": 0.2, "b": 0.5, "c": 0.3}),
            (Mode.TOP1, {"b": 1.0}),
            (Mode.TOP2, {"b": 0.625, "c": 0.375}),
        ],
    )
    def test_modes(self, mode: Mode, gates: dict[str, float]) -> None:
        decision = decide(logits_of(0.2, 0.5, 0.3), options=Options(mode=mode))
        assert decision.gates == pytest.approx(gates)

    def test_ties_go_to_the_earlier_expert(self) -> None:
        assert decide([1.0, 1.0, 1.0]).gates == {"a": 1.0}
        top2 = decide([1.0, 1.0, 1.0], options=Options(mode=Mode.TOP2))
        assert top2.gates == pytest.approx({"a": 0.5, "b": 0.5})

    def test_mask_comes_before_mode(self) -> None:
        options = Options(mode=Mode.TOP2, masked_experts=("b",))
        decision = decide(logits_of(0.2, 0.5, 0.1, 0.2), options=options)
        assert decision.gates == pytest.approx({"a": 0.5, "d": 0.5})
        assert decision.probabilities["b"] == pytest.approx(0.5)
        assert decision.confidence == pytest.approx(0.5)

    def test_what_a_mask_leaves_is_used_however_unlikely(self) -> None:
        options = Options(mode=Mode.SOFT, masked_experts=("a",))
        decision = decide([1000.0, -1000.0, -1000.0], options=options)
        assert decision.gates == pytest.approx({"b": 0.5, "c": 0.5})

    def test_masking_one_expert_twice_is_masking_it_once(self) -> None:
        assert decide([2.0, 1.0], options=Options(masked_experts=("a", "a"))).gates == {"b": 1.0}

    def test_override(self) -> None:
        hint = Hint("a", confidence=1.0, fast_path=True)
        decision = decide([5.0, 0.0, 0.0], hint, Options(expert_override="c"))
        assert decision.reason is Reason.MANUAL_OVERRIDE
        assert decision.gates == {"c": 1.0}
        assert decision.probabilities["a"] > 0.9

    def test_fast_path_needs_no_features(self) -> None:
        rules = policy()
        ask = rules.check(Hint("c", FAST, fast_path=True), Options(mode=Mode.SOFT))
        decision = rules.without_features(ask)
        assert decision == Decision({"c": 1.0}, {}, Reason.AGENT_FAST_PATH, FAST, 0.0)

    @pytest.mark.parametrize(
        "hint",
        [
            Hint("c", FAST - 0.01, fast_path=True),
            Hint("c", None, fast_path=True),
            Hint("c", 1.0, fast_path=False),
        ],
    )
    def test_no_fast_path(self, hint: Hint) -> None:
        rules = policy()
        assert rules.without_features(rules.check(hint, Options())) is None

    def test_agreement_keeps_the_heads_weights(self) -> None:
        decision = decide(logits_of(0.6, 0.4), Hint("a"), Options(mode=Mode.SOFT))
        assert decision.reason is Reason.AGENT_ACCEPTED
        assert decision.gates == pytest.approx({"a": 0.6, "b": 0.4})

    def test_a_sure_head_vetoes_even_a_sure_agent(self) -> None:
        decision = decide(logits_of(0.92, 0.08), Hint("b", 1.0))
        assert decision.reason is Reason.AGENT_VETOED
        assert decision.gates == {"a": 1.0}

    def test_a_sure_agent_outweighs_an_unsure_head(self) -> None:
        decision = decide(logits_of(0.6, 0.3, 0.1), Hint("c", ACCEPT), Options(mode=Mode.SOFT))
        assert decision.reason is Reason.AGENT_ACCEPTED
        assert decision.gates == {"c": 1.0}

    def test_neither_is_sure(self) -> None:
        decision = decide(logits_of(0.6, 0.3, 0.1), Hint("c", 0.4))
        assert decision.reason is Reason.TOP2_FALLBACK
        assert decision.gates == pytest.approx({"a": 0.6, "c": 0.4})

    def test_neither_is_sure_and_the_agent_gave_no_confidence(self) -> None:
        decision = decide(logits_of(0.6, 0.3, 0.1), Hint("c"))
        assert decision.reason is Reason.TOP2_FALLBACK
        assert decision.gates == pytest.approx({"a": 0.6 / 0.7, "c": 0.1 / 0.7})

    def test_a_masked_expert_vetoes_nothing(self) -> None:
        options = Options(masked_experts=("a",))
        decision = decide(logits_of(0.96, 0.02, 0.02), Hint("c", 0.4), options)
        assert decision.reason is Reason.TOP2_FALLBACK
        assert decision.gates == pytest.approx({"b": 0.5 / 0.9, "c": 0.4 / 0.9})
        assert decision.confidence == pytest.approx(0.96)


class TestRefusals:
    @pytest.mark.parametrize(
        ("hint", "options"),
        [
            (Hint("nobody"), Options()),
            (None, Options(masked_experts=("nobody",))),
            (None, Options(expert_override="nobody")),
        ],
    )
    def test_unknown_expert(self, hint: Hint | None, options: Options) -> None:
        with pytest.raises(NotFound) as caught:
            policy().check(hint, options)
        assert caught.value.reason == "UNKNOWN_EXPERT"

    @pytest.mark.parametrize(
        ("hint", "options", "reason"),
        [
            (None, Options(masked_experts=NAMES), "ALL_MASKED"),
            (None, Options(masked_experts=("a",), expert_override="a"), "EXPERT_MASKED"),
            (Hint("a"), Options(masked_experts=("a",)), "EXPERT_MASKED"),
            (None, Options(expert_override=""), "EMPTY_EXPERT"),
            (Hint(""), Options(), "EMPTY_EXPERT"),
            (Hint("a", -0.1), Options(), "BAD_CONFIDENCE"),
            (Hint("a", 1.1), Options(), "BAD_CONFIDENCE"),
            (Hint("a", math.nan), Options(), "BAD_CONFIDENCE"),
            (None, Options(temperature=0.0), "BAD_TEMPERATURE"),
            (None, Options(temperature=-1.0), "BAD_TEMPERATURE"),
            (None, Options(temperature=math.inf), "BAD_TEMPERATURE"),
            (None, Options(temperature=math.nan), "BAD_TEMPERATURE"),
        ],
    )
    def test_invalid(self, hint: Hint | None, options: Options, reason: str) -> None:
        with pytest.raises(InvalidArgument) as caught:
            policy().check(hint, options)
        assert caught.value.reason == reason


logit_lists = st.lists(
    st.floats(-1e4, 1e4, width=32, allow_subnormal=False), min_size=1, max_size=7
)
temperatures = st.floats(1e-3, 1e3)
modes = st.sampled_from(Mode)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Policy, list[float], Hint | None, Options]:
    """Logits, and a hint and options that the policy must accept."""
    logits = draw(logit_lists)
    names = tuple(f"e{index}" for index in range(len(logits)))
    masked = draw(st.sets(st.sampled_from(names), max_size=len(names) - 1))
    free = st.sampled_from(sorted(set(names) - masked))
    confidence = draw(st.none() | st.floats(0, 1))
    hint = draw(st.none() | st.builds(Hint, free, st.just(confidence), st.booleans()))
    options = Options(
        mode=draw(st.none() | modes),
        temperature=draw(st.none() | temperatures),
        masked_experts=tuple(sorted(masked)),
        expert_override=draw(st.none() | free),
    )
    return policy(names), logits, hint, options


class TestLaws:
    @given(cases())
    def test_gates_are_a_distribution_over_the_experts_that_are_left(
        self, case: tuple[Policy, list[float], Hint | None, Options]
    ) -> None:
        rules, logits, hint, options = case
        decision = decide(logits, hint, options, rules)
        assert sum(decision.gates.values()) == pytest.approx(1, abs=1e-5)
        assert all(weight > 0 for weight in decision.gates.values())
        assert not set(decision.gates) & set(options.masked_experts)
        if decision.probabilities:
            assert sum(decision.probabilities.values()) == pytest.approx(1, abs=1e-9)
            assert decision.confidence == max(decision.probabilities.values())
            assert 0 <= decision.entropy <= math.log(len(logits)) + 1e-9
        if options.mode is Mode.TOP1 and decision.reason is not Reason.TOP2_FALLBACK:
            assert list(decision.gates.values()) == [1.0]
        if options.mode is Mode.TOP2:
            assert len(decision.gates) <= 2

    @given(st.data(), st.lists(st.integers(-50, 50), min_size=2, max_size=7, unique=True))
    def test_the_order_of_experts_does_not_matter(
        self, data: st.DataObject, ints: list[int]
    ) -> None:
        logits = [value / 7 for value in ints]  # no ties: those go by order on purpose
        names = tuple(f"e{index}" for index in range(len(logits)))
        order = data.draw(st.permutations(range(len(logits))))
        options = Options(
            mode=data.draw(modes), masked_experts=data.draw(st.just(()) | st.just(("e0",)))
        )
        hint = data.draw(st.none() | st.builds(Hint, st.just("e1"), st.none() | st.floats(0, 1)))
        straight = decide(logits, hint, options, policy(names))
        turned = decide(
            [logits[index] for index in order],
            hint,
            options,
            policy(tuple(names[index] for index in order)),
        )
        assert turned.reason is straight.reason
        assert dict(turned.gates) == pytest.approx(dict(straight.gates), abs=1e-6)
        assert dict(turned.probabilities) == pytest.approx(dict(straight.probabilities))

    @given(logit_lists, temperatures, temperatures)
    def test_a_higher_temperature_is_never_surer(
        self, logits: list[float], one: float, other: float
    ) -> None:
        rules = policy(tuple(f"e{index}" for index in range(len(logits))))
        cold, hot = sorted((one, other))
        sharp = decide(logits, options=Options(temperature=cold), rules=rules)
        flat = decide(logits, options=Options(temperature=hot), rules=rules)
        assert flat.confidence <= sharp.confidence + 1e-12
        assert flat.entropy >= sharp.entropy - 1e-9

    @given(st.lists(st.integers(-99, 99), min_size=1, max_size=7), st.integers(-999, 999))
    def test_a_shift_of_all_logits_changes_nothing(self, logits: list[int], shift: int) -> None:
        moved = [value + shift for value in logits]
        rules = policy(tuple(f"e{index}" for index in range(len(logits))), Mode.SOFT)
        assert decide(moved, rules=rules) == decide(logits, rules=rules)

    @given(logit_lists)
    def test_extreme_temperatures_make_no_nan(self, logits: list[float]) -> None:
        rules = policy(tuple(f"e{index}" for index in range(len(logits))), Mode.SOFT)
        for temperature in (5e-324, 1e-45, 1e308):
            decision = decide(logits, options=Options(temperature=temperature), rules=rules)
            assert sum(decision.gates.values()) == pytest.approx(1, abs=1e-5)
