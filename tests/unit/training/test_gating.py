"""Temperatures over a run, and gates whose gradient is that of something softer."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from executor_service.core import RoutingMode
from training.gating import TrainingPolicy, gumbel, straight_through, temperature_at
from training.run_config import Gates

FEW = settings(max_examples=50, deadline=None)
SHAPES = ("linear", "cosine", "exponential")


def policy(estimator: str, top_k: int = 1, temperature: float = 1.0, seed: int = 0):
    made = TrainingPolicy(Gates(estimator=estimator, top_k=top_k))
    made.temperature = temperature
    made.noise.manual_seed(seed)
    return made


class TestTemperature:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_it_goes_from_start_to_end_and_never_back(self, shape: str) -> None:
        gates = Gates(temperature_start=4, temperature_end=0.5, temperature_shape=shape)
        seen = [temperature_at(gates, step, 20) for step in range(20)]
        assert seen[0] == pytest.approx(4)
        assert seen[-1] == pytest.approx(0.5)
        assert seen == sorted(seen, reverse=True)
        assert temperature_at(gates, 25, 20) == pytest.approx(0.5)

    def test_half_way(self) -> None:
        def middle(shape: str) -> float:
            gates = Gates(temperature_start=4, temperature_end=1, temperature_shape=shape)
            return temperature_at(gates, 10, 21)

        assert middle("linear") == pytest.approx(2.5)
        assert middle("cosine") == pytest.approx(2.5)
        assert middle("exponential") == pytest.approx(2.0)

    def test_a_run_of_one_step(self) -> None:
        assert temperature_at(Gates(temperature_start=3), 0, 1) == 3


class TestEstimators:
    @FEW
    @given(
        st.integers(0, 2**31), st.integers(1, 5), st.sampled_from(["straight_through", "gumbel"])
    )
    def test_hard_gates_are_hard_to_the_last_bit(self, seed: int, kept: int, kind: str) -> None:
        logits = 4 * torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(seed))
        probabilities, gates = policy(kind, kept, seed=seed)(logits, RoutingMode.SOFT, None)
        assert ((gates != 0).sum(dim=-1) == kept).all()
        assert torch.allclose(gates.sum(dim=-1), torch.ones(3, 2))
        assert torch.equal(probabilities, logits.softmax(dim=-1))
        if kept == 1:
            assert set(gates.unique().tolist()) == {0.0, 1.0}

    def test_their_gradient_is_the_probabilities_and_reaches_who_has_no_gate(self) -> None:
        logits = torch.tensor([[1.0, 0.5, -1.0]], requires_grad=True)
        pull = torch.tensor([[0.3, 2.0, -1.0]])
        _, gates = policy("straight_through")(logits, RoutingMode.SOFT, None)
        [hard] = torch.autograd.grad((gates * pull).sum(), [logits])
        [soft] = torch.autograd.grad((logits.softmax(dim=-1) * pull).sum(), [logits])
        assert gates.tolist() == [[1.0, 0.0, 0.0]]
        assert torch.allclose(hard, soft)
        assert (hard != 0).all()

    def test_soft_gates_are_the_probabilities(self) -> None:
        logits = torch.randn(2, 4)
        probabilities, gates = policy("soft", temperature=0.5)(logits, RoutingMode.SOFT, None)
        assert torch.equal(probabilities, (logits / 0.5).softmax(dim=-1))
        assert torch.equal(gates, probabilities)

    def test_the_caller_says_how_many_keep_a_gate(self) -> None:
        logits, made = torch.randn(3, 6), policy("straight_through")
        for mode, top_k, kept in (
            (RoutingMode.TOP2, None, 2),
            (RoutingMode.TOP2, 3, 3),
            (RoutingMode.SOFT, 9, 6),
        ):
            _, gates = made(logits, mode, top_k)
            assert ((gates > 0).sum(dim=-1) == kept).all()

    def test_half_precision_logits_give_float32_gates(self) -> None:
        _, gates = policy("gumbel")(torch.randn(2, 3).bfloat16(), RoutingMode.SOFT, None)
        assert gates.dtype == torch.float32

    def test_gumbel_picks_as_often_as_the_probabilities_say(self) -> None:
        logits = torch.tensor([0.2, 1.4, -0.7]).expand(20_000, 3)
        _, gates = policy("gumbel", seed=3)(logits, RoutingMode.SOFT, None)
        assert torch.allclose(gates.mean(dim=0), logits[0].softmax(dim=-1), atol=0.015)

    def test_noise_is_that_of_its_seed_and_has_gumbels_mean(self) -> None:
        one, two = (gumbel(torch.Size([50_000]), torch.Generator().manual_seed(5)) for _ in "ab")
        assert torch.equal(one, two)
        assert float(one.mean()) == pytest.approx(0.5772, abs=0.02)
        assert float(one.std()) == pytest.approx(math.pi / math.sqrt(6), abs=0.02)

    def test_more_experts_than_there_are(self) -> None:
        even = torch.full((1, 2), 0.5)
        assert straight_through(even, 7).tolist() == [[0.5, 0.5]]
