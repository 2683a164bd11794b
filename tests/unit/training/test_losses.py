"""The losses at the points where they are known, and what holds for all distributions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.losses import (
    answer_loss,
    balance_loss,
    divergence,
    entropy_penalty,
    least_share,
)

FEW = settings(max_examples=50, deadline=None)
numbers = st.integers(0, 2**30)


def distributions(seed: int, *shape: int, scale: float = 3.0) -> torch.Tensor:
    noise = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=noise)).softmax(dim=-1)


class TestEntropy:
    @FEW
    @given(numbers, st.integers(2, 9))
    def test_it_is_zero_at_one_hot_and_one_at_uniform_gates(self, seed: int, experts: int) -> None:
        hot = torch.nn.functional.one_hot(torch.tensor([seed % experts]), experts).float()
        assert float(entropy_penalty(hot)) == pytest.approx(0, abs=1e-30)
        assert float(entropy_penalty(torch.full((3, experts), 1 / experts))) == pytest.approx(1)
        between = float(entropy_penalty(distributions(seed, 4, experts)))
        assert 0 < between < 1

    def test_its_slope_is_finite_where_a_softmax_underflows(self) -> None:
        logits = torch.tensor([[0.0, -1000.0, 3.0]], requires_grad=True)
        entropy_penalty(logits.softmax(dim=-1)).backward()
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all()

    @FEW
    @given(numbers)
    def test_following_it_down_sharpens(self, seed: int) -> None:
        logits = distributions(seed, 2, 5).log().requires_grad_()
        [slope] = torch.autograd.grad(entropy_penalty(logits.softmax(dim=-1)), [logits])
        sharper = (logits - 0.1 * slope).softmax(dim=-1)
        assert entropy_penalty(sharper) <= entropy_penalty(logits.softmax(dim=-1))

    def test_a_single_expert_has_none(self) -> None:
        assert float(entropy_penalty(torch.ones(3, 1))) == 0

    def test_layers_count_alike(self) -> None:
        gates = distributions(0, 2, 3, 4)
        each = torch.stack([entropy_penalty(gates[:, layer]) for layer in range(3)])
        assert torch.allclose(entropy_penalty(gates), each.mean())


class TestDivergence:
    @FEW
    @given(numbers, numbers)
    def test_it_is_zero_only_where_nothing_moved(self, one: int, other: int) -> None:
        anchor, moved = distributions(2 * one, 3, 4), distributions(2 * other + 1, 3, 4)
        assert float(divergence(anchor, anchor)) == pytest.approx(0, abs=1e-6)
        assert float(divergence(anchor, moved)) > 0

    def test_by_hand(self) -> None:
        anchor, moved = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
        expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
        assert float(divergence(anchor, moved)) == pytest.approx(expected)

    def test_dropping_an_expert_is_dear_and_finite(self) -> None:
        dropped = divergence(torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]]))
        assert 10 < float(dropped) < 100


class TestBalance:
    @FEW
    @given(numbers, numbers, st.integers(2, 8))
    def test_it_is_least_at_the_label_marginals(self, one: int, other: int, experts: int) -> None:
        labels, marginals = distributions(2 * one, experts), distributions(2 * other + 1, experts)
        assert float(balance_loss(labels, labels)) == pytest.approx(0, abs=1e-6)
        assert float(balance_loss(marginals, labels)) > 0
        # Half the way there is nearer.
        nearer = balance_loss((marginals + labels) / 2, labels)
        assert float(nearer) < float(balance_loss(marginals, labels))

    def test_with_equal_shares_it_is_moles_less_a_constant(self) -> None:
        marginals, equal = distributions(1, 5), torch.full((5,), 0.2)
        mole = -marginals.log().sum()
        assert float(balance_loss(marginals, equal)) == pytest.approx(
            float(mole / 5) - math.log(5), rel=1e-5
        )

    def test_an_expert_without_records_is_left_out(self) -> None:
        labels, marginals = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.5, 0.5, 0.0])
        assert float(balance_loss(marginals, labels)) == 0

    def test_a_collapse_is_dear_and_finite(self) -> None:
        lost = balance_loss(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]))
        assert 10 < float(lost) < 100

    @FEW
    @given(numbers, numbers)
    def test_the_least_share_is_one_only_at_the_labels(self, one: int, other: int) -> None:
        labels, marginals = distributions(2 * one, 4), distributions(2 * other + 1, 4)
        assert float(least_share(labels, labels)) == 1
        assert 0 <= float(least_share(marginals, labels)) < 1

    def test_the_least_share_by_hand(self) -> None:
        labels = torch.tensor([0.5, 0.5, 0.0])
        assert float(least_share(torch.tensor([0.9, 0.1, 0.0]), labels)) == pytest.approx(0.2)


class TestAnswers:
    def test_only_the_answer_counts_and_every_row_alike(self) -> None:
        noise = torch.Generator().manual_seed(0)
        rows = [torch.randn(length, 7, generator=noise) for length in (5, 9)]
        answers = [(1, 2), (3, 4, 5, 6)]
        by_hand = [
            -sum(
                float(row.log_softmax(dim=-1)[len(row) - len(answer) + at, token])
                for at, token in enumerate(answer)
            )
            / len(answer)
            for row, answer in zip(rows, answers, strict=True)
        ]
        assert float(answer_loss(rows, answers)) == pytest.approx(sum(by_hand) / 2, rel=1e-5)
