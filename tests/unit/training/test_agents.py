"""Simulated agents are as good as they say, and together with a router never worse than alone."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from router_service.core import HeadOutput, Hint, Mode, Options
from router_service.manifest import (
    AgentModel,
    ModeSetting,
    TemperatureSetting,
    Threshold,
    Thresholds,
)
from router_service.policy import Policy, PolicyConfig
from training.agents import Hints, measure_agent, pool_all, simulate
from training.data.hints import read_hint
from training.scoring import Rate

EXPERTS = ("a", "b", "c", "d")
K = len(EXPERTS)
NEVER = Threshold(None, "fitted", "test")


def router(n: int, sharpness: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits [n, K] and labels [n] of a router that is calibrated: labels are drawn from it."""
    noise = np.random.default_rng(seed)
    logits = sharpness * noise.normal(size=(n, K))
    posterior = softmax(logits)
    labels = (posterior.cumsum(axis=1) < noise.random((n, 1))).sum(axis=1)
    return logits, np.minimum(labels, K - 1)


def softmax(logits: np.ndarray) -> np.ndarray:
    grown = np.exp(logits - logits.max(axis=1, keepdims=True))
    return grown / grown.sum(axis=1, keepdims=True)


class TestSimulation:
    @pytest.mark.parametrize("reliability", [0.6, 0.8, 0.95])
    def test_it_is_right_as_often_as_it_should_and_knows_when(self, reliability: float) -> None:
        labels = np.random.default_rng(1).integers(0, K, 20_000)
        hints = simulate(labels, K, reliability, seed=2)
        right = hints.expert == labels
        assert right.mean() == pytest.approx(reliability, abs=0.01)
        for low, high in ((0.2, 0.4), (0.6, 0.8), (0.9, 1.0)):
            own = (hints.confidence >= low) & (hints.confidence < high)
            assert right[own].mean() == pytest.approx(hints.confidence[own].mean(), abs=0.04)
        wrong = np.bincount((hints.expert - labels)[~right] % K, minlength=K)
        assert wrong[0] == 0
        assert wrong[1:].std() / wrong[1:].mean() < 0.05

    def test_the_same_seed_is_the_same_agent(self) -> None:
        labels = np.zeros(50, np.int64)
        one, two = (simulate(labels, K, 0.8, seed=3) for _ in range(2))
        assert (one.expert == two.expert).all()
        assert (one.expert != simulate(labels, K, 0.8, seed=4).expert).any()


class TestMeasurement:
    def test_an_agent_that_errs_apart_gets_bayes_weight(self) -> None:
        logits, labels = router(1500, 1.5, seed=0)
        hints = simulate(labels, K, 0.8, seed=1)
        agent = measure_agent(softmax(logits), labels, hints, "simulated")
        assert agent.weight == pytest.approx(1.0, abs=0.15)
        assert agent.reliability == pytest.approx(0.8, abs=0.02)
        assert agent.ceiling == 1501 / 1502

    def test_an_agent_that_only_repeats_the_router_gets_little(self) -> None:
        logits, labels = router(1500, 1.5, seed=0)
        posterior = softmax(logits)
        echo = Hints(posterior.argmax(axis=1), posterior.max(axis=1))
        assert measure_agent(posterior, labels, echo, "measured").weight < 0.1

    def test_one_that_exaggerates_gets_less_and_one_that_is_modest_more(self) -> None:
        logits, labels = router(800, 1.0, seed=0)
        hints = simulate(labels, K, 0.8, seed=1)
        weights = [
            measure_agent(
                softmax(logits), labels, dataclasses.replace(hints, confidence=said), "measured"
            ).weight
            for said in (hints.confidence**0.3, hints.confidence, 0.5 + hints.confidence / 10)
        ]
        assert weights[0] < weights[1] < weights[2]

    def test_cases_without_a_hint_say_nothing_about_the_agent(self) -> None:
        logits, labels = router(200, 1.5, seed=0)
        hints = simulate(labels, K, 0.8, seed=1)
        some = np.arange(200) % 2 == 0
        silent = Hints(np.where(some, hints.expert, -1), hints.confidence)
        alone = measure_agent(softmax(logits)[some], labels[some], hints[some], "measured")
        assert measure_agent(softmax(logits), labels, silent, "measured") == alone

    def test_a_handful_of_hints_moves_the_weight_little(self) -> None:
        posterior, labels = np.full((3, K), 1 / K), np.array([0, 1, 2])
        agent = measure_agent(posterior, labels, Hints(labels, np.full(3, 0.9)), "measured")
        assert 1 < agent.weight < 1.6
        assert (agent.reliability, agent.ceiling) == (0.8, 0.8)


class TestTogether:
    """The combined choice is that of the served policy: the expert with the heaviest gate."""

    @pytest.mark.parametrize("confident", [True, False], ids=["confidence", "reliability"])
    @pytest.mark.parametrize("reliability", [0.6, 0.8, 0.95])
    @pytest.mark.parametrize("sharpness", [1.0, 2.5, 8.0, 100.0])
    def test_never_below_the_better_of_the_two(
        self, sharpness: float, reliability: float, confident: bool
    ) -> None:
        tune_logits, tune_labels = router(500, sharpness, seed=10)
        logits, labels = router(1500, sharpness, seed=11)
        tune_hints = simulate(tune_labels, K, reliability, seed=12)
        hints = simulate(labels, K, reliability, seed=13)
        if not confident:
            tune_hints, hints = tune_hints.without_confidence(), hints.without_confidence()
        agent = measure_agent(softmax(tune_logits), tune_labels, tune_hints, "simulated")
        chosen = np.array(choices(logits, hints, agent))
        together = Rate(int((chosen == labels).sum()), len(labels))
        better = max((logits.argmax(axis=1) == labels).mean(), (hints.expert == labels).mean())
        assert together.interval[1] >= better
        assert together.value >= better - 0.02

    def test_it_is_better_than_either_where_both_are_unsure(self) -> None:
        logits, labels = router(4000, 1.5, seed=20)
        hints = simulate(labels, K, 0.7, seed=21)
        agent = AgentModel(1.0, 0.7, 0.999, "simulated", "test")
        chosen = np.array(choices(logits, hints, agent))
        alone = max((logits.argmax(axis=1) == labels).mean(), (hints.expert == labels).mean())
        assert (chosen == labels).mean() > alone + 0.05

    def test_pooling_all_is_pooling_each(self) -> None:
        posterior = np.array([[0.5, 0.5], [0.9, 0.1]])
        hints = Hints(np.array([1, -1]), np.array([np.nan, 0.7]))
        agent = AgentModel(1.0, 0.8, 0.99, "measured", "test")
        assert pool_all(posterior, hints, agent).tolist() == [
            pytest.approx([0.2, 0.8]),
            [0.9, 0.1],
        ]


def choices(logits: np.ndarray, hints: Hints, agent: AgentModel) -> list[int]:
    policy = Policy(
        PolicyConfig(
            EXPERTS,
            ModeSetting(Mode.TOP1, "test"),
            TemperatureSetting(1.0, "test"),
            Thresholds(NEVER, NEVER, NEVER),
            agent,
        )
    )
    chosen = []
    for row, expert, confidence in zip(logits, hints.expert, hints.confidence, strict=True):
        said = None if math.isnan(confidence) else float(confidence)
        ask = policy.check(Hint(EXPERTS[expert], said), Options())
        gates = policy.decide(ask, HeadOutput(row.astype(np.float32))).gates
        chosen.append(EXPERTS.index(max(gates, key=gates.__getitem__)))
    return chosen


class TestReading:
    def test_a_record_without_a_hint(self) -> None:
        expert, confidence = read_hint({"task_type": "x"}, EXPERTS)
        assert expert == -1
        assert math.isnan(confidence)

    def test_a_hint_with_and_without_a_confidence(self) -> None:
        given = {"agent_expert": "b", "agent_confidence": 1}
        assert read_hint(given, EXPERTS) == (1, 1.0)
        expert, confidence = read_hint({"agent_expert": "c"}, EXPERTS)
        assert expert == 2
        assert math.isnan(confidence)

    @pytest.mark.parametrize(
        ("hint", "problem"),
        [
            ({"agent_expert": "desktop"}, "is none of a, b, c, d"),
            ({"agent_expert": {}}, "is no name"),
            ({"agent_confidence": 0.7}, "is no name"),
            ({"agent_expert": "a", "agent_confidence": 1.5}, "no number in"),
            ({"agent_expert": "a", "agent_confidence": math.nan}, "no number in"),
            ({"agent_expert": "a", "agent_confidence": True}, "no number in"),
            ({"agent_expert": "a", "agent_confidence": "high"}, "no number in"),
        ],
    )
    def test_a_hint_that_cannot_be_read(self, hint: dict[str, Any], problem: str) -> None:
        with pytest.raises(ValueError, match=problem):
            read_hint(hint, EXPERTS)
