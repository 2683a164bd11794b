"""The policy's rules and its laws: sums, masks, permutations, temperature."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router_service.core import Abstention, Decision, HeadOutput, Hint, Mode, Options, Reason
from router_service.manifest import (
    AbstentionRule,
    AgentModel,
    ModeSetting,
    TemperatureSetting,
    Threshold,
    Thresholds,
)
from router_service.policy import Policy, PolicyConfig
from router_service.weights import pool
from service_chassis.errors import InvalidArgument, NotFound

FAST, ACCEPT, VETO = 0.95, 0.8, 0.9
NAMES = ("a", "b", "c", "d")


AGENT = AgentModel(1.0, 0.75, 0.99, "measured", "test")
FAR = 5.0


def limits(*values: float | None) -> Thresholds:
    return Thresholds(*(Threshold(value, "typed", "test") for value in values))


def policy(names: tuple[str, ...] = NAMES, mode: Mode = Mode.TOP1, **changes: Any) -> Policy:
    given = {
        "thresholds": limits(FAST, ACCEPT, VETO),
        "agent": AGENT,
        "abstention": AbstentionRule(FAR, "typed", "test"),
    }
    return Policy(
        PolicyConfig(
            names,
            ModeSetting(mode, "test"),
            TemperatureSetting(1.0, "test"),
            **{**given, **changes},
        )
    )


def decide(
    logits: Sequence[float],
    hint: Hint | None = None,
    options: Options | None = None,
    rules: Policy | None = None,
    distance: float | None = None,
) -> Decision:
    rules = rules or policy(NAMES[: len(logits)])
    ask = rules.check(hint, options or Options())
    output = HeadOutput(np.array(logits, np.float32), distance)
    return rules.without_features(ask) or rules.decide(ask, output)


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

    def test_a_reliable_agent_needs_no_confidence_for_the_fast_path(self) -> None:
        rules = policy(agent=AgentModel(1.0, FAST, 0.99, "measured", "test"))
        decision = rules.without_features(rules.check(Hint("c", fast_path=True), Options()))
        assert decision is not None
        assert (decision.reason, decision.confidence) == (Reason.AGENT_FAST_PATH, FAST)

    def test_a_threshold_that_was_never_shown_to_be_safe_is_never_reached(self) -> None:
        rules = policy(thresholds=limits(None, None, None))
        ask = rules.check(Hint("c", 1.0, fast_path=True), Options())
        assert rules.without_features(ask) is None
        for logits in ([9.0, 0.0, 0.0, 0.0], [0.1, 0.0, 0.0, 0.0]):
            decision = decide(logits, Hint("c", 0.9), rules=rules)
            assert decision.reason is Reason.TOP2_FALLBACK

    def test_agreement_pools_the_weights(self) -> None:
        decision = decide(logits_of(0.6, 0.4), Hint("a", 0.8), Options(mode=Mode.SOFT))
        assert decision.reason is Reason.AGENT_ACCEPTED
        assert decision.gates == pytest.approx({"a": 0.48 / 0.56, "b": 0.08 / 0.56})
        assert decision.probabilities == pytest.approx({"a": 0.6, "b": 0.4})

    def test_a_head_that_is_surer_than_the_agent_vetoes(self) -> None:
        # 0.98 * 0.3 against 0.02 * 0.7
        decision = decide(logits_of(0.98, 0.02), Hint("b", 0.7))
        assert decision.reason is Reason.AGENT_VETOED
        assert decision.gates == {"a": 1.0}

    def test_an_agent_that_is_surer_than_the_head_is_accepted(self) -> None:
        # 0.6 * 0.05 against 0.4 * 0.95
        decision = decide(logits_of(0.6, 0.4), Hint("b", 0.95), Options(mode=Mode.SOFT))
        assert decision.reason is Reason.AGENT_ACCEPTED
        assert decision.gates == pytest.approx({"a": 0.03 / 0.41, "b": 0.38 / 0.41})

    def test_neither_is_sure(self) -> None:
        # The agent's other 0.6 are shared: a 0.6 * 0.3, b 0.3 * 0.3, c 0.1 * 0.4
        decision = decide(logits_of(0.6, 0.3, 0.1), Hint("c", 0.4))
        assert decision.reason is Reason.TOP2_FALLBACK
        assert decision.gates == pytest.approx({"a": 0.18 / 0.22, "c": 0.04 / 0.22})

    def test_without_a_confidence_the_measured_reliability_stands_in(self) -> None:
        silent = decide(logits_of(0.6, 0.3, 0.1), Hint("c"))
        assert silent == decide(logits_of(0.6, 0.3, 0.1), Hint("c", AGENT.reliability))
        assert silent.reason is Reason.TOP2_FALLBACK
        assert silent.gates["c"] == pytest.approx(0.075 / (0.075 + 0.075))

    def test_an_agent_of_which_nothing_is_known_has_no_weight(self) -> None:
        rules = policy(NAMES[:3], agent=None)
        for confidence in (None, 0.2, 1.0):
            decision = decide(logits_of(0.6, 0.3, 0.1), Hint("c", confidence), rules=rules)
            assert decision.reason is Reason.TOP2_FALLBACK
            assert decision.gates == pytest.approx({"a": 0.6 / 0.7, "c": 0.1 / 0.7})

    def test_certainty_is_believed_up_to_the_ceiling(self) -> None:
        certain = decide(logits_of(0.9999, 0.0001), Hint("b", 1.0))
        assert certain == decide(logits_of(0.9999, 0.0001), Hint("b", AGENT.ceiling))
        assert certain.reason is Reason.AGENT_VETOED

    def test_an_agent_below_chance_speaks_for_nobody_else(self) -> None:
        decision = decide(logits_of(0.4, 0.35, 0.25), Hint("a", 0.0), Options(mode=Mode.SOFT))
        assert decision.reason is Reason.AGENT_ACCEPTED
        assert decision.gates == pytest.approx({"a": 0.4, "b": 0.35, "c": 0.25})

    def test_a_masked_expert_vetoes_nothing(self) -> None:
        options = Options(masked_experts=("a",))
        decision = decide(logits_of(0.96, 0.02, 0.02), Hint("c", 0.4), options)
        assert decision.reason is Reason.TOP2_FALLBACK
        assert decision.gates == pytest.approx({"b": 0.3 / 0.7, "c": 0.4 / 0.7})
        assert decision.confidence == pytest.approx(0.96)


class TestAbstention:
    @pytest.mark.parametrize(
        ("outcome", "gates"),
        [
            (Abstention.ERROR, {}),
            (Abstention.BASE, {}),
            (Abstention.TOP2, {"a": 0.7 / 0.9, "b": 0.2 / 0.9}),
        ],
    )
    def test_a_screen_that_no_expert_knows(
        self, outcome: Abstention, gates: dict[str, float]
    ) -> None:
        rules = policy(NAMES[:3], outcome=outcome)
        decision = decide(logits_of(0.7, 0.2, 0.1), rules=rules, distance=FAR + 0.1)
        assert (decision.reason, decision.abstention) == (Reason.ABSTAINED, outcome)
        assert decision.gates == pytest.approx(gates)
        assert decision.distance == FAR + 0.1
        assert decision.probabilities["a"] == pytest.approx(0.7)

    def test_a_known_screen(self) -> None:
        decision = decide([3.0, 0.0], distance=FAR)
        assert (decision.reason, decision.abstention) == (Reason.ROUTER, None)
        assert decision.distance == FAR

    def test_an_agents_hint_does_not_make_it_known(self) -> None:
        decision = decide([3.0, 0.0], Hint("a", 1.0), distance=FAR + 1)
        assert decision.reason is Reason.ABSTAINED

    def test_an_override_does(self) -> None:
        decision = decide([3.0, 0.0], options=Options(expert_override="b"), distance=FAR + 1)
        assert decision.reason is Reason.MANUAL_OVERRIDE

    @pytest.mark.parametrize("rule", [None, AbstentionRule(None, "fitted", "too few cases")])
    def test_a_bundle_that_cannot_tell(self, rule: AbstentionRule | None) -> None:
        rules = policy(NAMES[:2], abstention=rule)
        assert decide([3.0, 0.0], rules=rules, distance=99.0).reason is Reason.ROUTER


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


# A machine that is busy breaks no law.
laws = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
logit_lists = st.lists(
    st.floats(-1e4, 1e4, width=32, allow_subnormal=False), min_size=1, max_size=7
)
temperatures = st.floats(1e-3, 1e3)
modes = st.sampled_from(Mode)


agents = st.none() | st.builds(
    AgentModel,
    st.floats(0, 5),
    st.floats(0, 1),
    st.floats(0.5, 0.9999),
    st.just("measured"),
    st.just("test"),
)
levels = st.none() | st.floats(0, 1)
Case: TypeAlias = tuple[Policy, list[float], Hint | None, Options, float | None]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Logits, a distance, and a hint and options that the policy must accept."""
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
    rules = policy(
        names,
        agent=draw(agents),
        thresholds=limits(draw(levels), draw(levels), draw(levels)),
        outcome=draw(st.sampled_from(Abstention)),
    )
    return rules, logits, hint, options, draw(st.none() | st.floats(0, 2 * FAR))


def rules_left(case: Case) -> list[str]:
    """The experts that the case's caller did not mask."""
    rules, _, _, options, _ = case
    return [name for name in rules.config.experts if name not in options.masked_experts]


class TestLaws:
    @laws
    @given(cases())
    def test_gates_are_a_distribution_over_the_experts_that_are_left(self, case: Case) -> None:
        rules, logits, hint, options, distance = case
        decision = decide(logits, hint, options, rules, distance)
        assert (decision.reason is Reason.ABSTAINED) == (decision.abstention is not None)
        if decision.abstention in (Abstention.ERROR, Abstention.BASE):
            assert decision.gates == {}
            return
        assert sum(decision.gates.values()) == pytest.approx(1, abs=1e-5)
        assert all(weight > 0 for weight in decision.gates.values())
        assert not set(decision.gates) & set(options.masked_experts)
        if decision.probabilities:
            assert sum(decision.probabilities.values()) == pytest.approx(1, abs=1e-9)
            assert decision.confidence == max(decision.probabilities.values())
            assert 0 <= decision.entropy <= math.log(len(logits)) + 1e-9
        shared = (Reason.TOP2_FALLBACK, Reason.ABSTAINED)
        if options.mode is Mode.TOP1 and decision.reason not in shared:
            assert list(decision.gates.values()) == [1.0]
        if options.mode is Mode.TOP2 or decision.reason in shared:
            assert len(decision.gates) <= 2

    @laws
    @given(cases())
    def test_the_heaviest_is_the_heads_choice_or_the_agents(self, case: Case) -> None:
        rules, logits, hint, options, distance = case
        decision = decide(logits, hint, options, rules, distance)
        if not (decision.gates and decision.probabilities and hint) or options.expert_override:
            return
        allowed = {n: p for n, p in decision.probabilities.items() if n in rules_left(case)}
        heaviest = max(decision.gates.values())
        winners = {name for name, weight in decision.gates.items() if weight == heaviest}
        best = {name for name, p in allowed.items() if p == max(allowed.values())}
        assert winners & (best | {hint.expert})

    @laws
    @given(cases(), st.floats(0, 1), st.floats(0, 1))
    def test_a_surer_agent_never_loses_weight(self, case: Case, one: float, other: float) -> None:
        rules, logits, _, options, _ = case
        hinted = rules_left(case)[-1]
        options = dataclasses.replace(options, mode=Mode.SOFT, expert_override=None)
        low, high = (
            decide(logits, Hint(hinted, confidence), options, rules)
            for confidence in sorted((one, other))
        )
        # Among two or among all: weights compare within one rule only.
        if low.reason is high.reason:
            assert high.gates.get(hinted, 0.0) >= low.gates.get(hinted, 0.0) - 1e-6

    @laws
    @given(cases(), st.floats(0, 1), st.floats(0, 1))
    def test_a_stricter_threshold_never_decides_more(
        self, case: Case, one: float, other: float
    ) -> None:
        rules, logits, hint, options, distance = case
        loose, strict = (
            decide(
                logits,
                hint,
                options,
                Policy(dataclasses.replace(rules.config, thresholds=limits(level, level, level))),
                distance,
            )
            for level in sorted((one, other))
        )
        if strict.reason in (Reason.AGENT_FAST_PATH, Reason.AGENT_VETOED):
            assert loose.reason in (strict.reason, Reason.AGENT_FAST_PATH)
        if loose.reason is Reason.TOP2_FALLBACK:
            assert strict == loose

    @laws
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
        # Weights whose products have no ties either.
        confidence = data.draw(st.none() | st.sampled_from((0.13, 0.31, 0.57, 0.83, 0.97)))
        hint = data.draw(st.none() | st.just(Hint("e1", confidence)))
        changes = {"outcome": data.draw(st.sampled_from(Abstention))}
        distance = data.draw(st.none() | st.floats(0, 2 * FAR))
        straight = decide(logits, hint, options, policy(names, **changes), distance)
        turned = decide(
            [logits[index] for index in order],
            hint,
            options,
            policy(tuple(names[index] for index in order), **changes),
            distance,
        )
        assert turned.reason is straight.reason
        assert dict(turned.gates) == pytest.approx(dict(straight.gates), abs=1e-6)
        assert dict(turned.probabilities) == pytest.approx(dict(straight.probabilities))

    @laws
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

    @laws
    @given(st.lists(st.integers(-99, 99), min_size=1, max_size=7), st.integers(-999, 999))
    def test_a_shift_of_all_logits_changes_nothing(self, logits: list[int], shift: int) -> None:
        moved = [value + shift for value in logits]
        rules = policy(tuple(f"e{index}" for index in range(len(logits))), Mode.SOFT)
        assert decide(moved, rules=rules) == decide(logits, rules=rules)

    @laws
    @given(logit_lists)
    def test_extreme_temperatures_make_no_nan(self, logits: list[float]) -> None:
        rules = policy(tuple(f"e{index}" for index in range(len(logits))), Mode.SOFT)
        for temperature in (5e-324, 1e-45, 1e308):
            decision = decide(logits, options=Options(temperature=temperature), rules=rules)
            assert sum(decision.gates.values()) == pytest.approx(1, abs=1e-5)

    @laws
    @given(
        st.lists(st.floats(0.001, 1), min_size=2, max_size=7),
        st.data(),
        st.floats(0, 1),
        st.floats(0, 5),
    )
    def test_pooling(
        self, raw: list[float], data: st.DataObject, confidence: float, weight: float
    ) -> None:
        heard = np.array(raw) / sum(raw)
        hinted = data.draw(st.integers(0, len(raw) - 1))
        pooled = pool(heard, hinted, confidence, weight, 0.99)
        assert pooled.sum() == pytest.approx(1)
        others = np.delete(heard, hinted)
        # What the agent does not speak of keeps its proportions.
        np.testing.assert_allclose(
            np.delete(pooled, hinted) * others.sum(),
            others * np.delete(pooled, hinted).sum(),
            atol=1e-9,
        )
        np.testing.assert_allclose(pool(heard, hinted, confidence, 0.0, 0.99), heard)
        for little in (0.0, 1 / len(heard)):
            even = pool(heard, hinted, little, weight, 0.99)
            np.testing.assert_allclose(even, heard, atol=1e-9)

    def test_pooling_is_bayes_rule_for_an_independent_agent(self) -> None:
        prior = np.array([0.5, 0.3, 0.2])
        likelihood = np.array([0.1, 0.8, 0.1])
        expected = prior * likelihood / (prior * likelihood).sum()
        np.testing.assert_allclose(pool(prior, 1, 0.8, 1.0, 0.99), expected)
