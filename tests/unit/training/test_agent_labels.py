"""An agent's noise is counted where it can be, and hints teach through it."""

from __future__ import annotations

import math

import pytest
import torch

from training.agent_labels import hint_loss, noise_matrix


def test_without_a_count_the_matrix_is_what_is_assumed() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    matrix = noise_matrix(nothing, nothing, experts=3, reliability=0.8)
    assert matrix.diagonal().tolist() == pytest.approx([0.8] * 3)
    assert matrix[0, 1] == pytest.approx(0.1)


def test_what_was_counted_prevails() -> None:
    """An agent that always says b of a's cases, and is right about b's."""
    labels = torch.tensor([0] * 995 + [1] * 995)
    matrix = noise_matrix(labels, torch.ones_like(labels), experts=2, reliability=0.8)
    # 995 counted and 5 assumed rows of each.
    assert matrix[0].tolist() == pytest.approx([4 / 1000, 996 / 1000])
    assert matrix[1].tolist() == pytest.approx([1 / 1000, 999 / 1000])
    assert matrix.sum(dim=1).tolist() == pytest.approx([1, 1])


def test_the_loss_is_that_of_what_the_agent_would_say() -> None:
    matrix = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
    logits = torch.tensor([[math.log(3.0), 0.0]])
    loss = hint_loss(logits, torch.tensor([1]), torch.tensor([0.5]), matrix)
    assert float(loss) == pytest.approx(-math.log(0.75 * 0.1 + 0.25 * 0.6))


def test_a_hint_counts_for_what_the_agent_was_sure_of_it() -> None:
    matrix, logits = torch.eye(2) * 0.8 + 0.1, torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    hinted = torch.tensor([0, 1])
    each = [hint_loss(logits, hinted, torch.eye(2)[at], matrix) for at in range(2)]
    both = hint_loss(logits, hinted, torch.tensor([0.9, 0.3]), matrix)
    assert float(both) == pytest.approx(0.75 * float(each[0]) + 0.25 * float(each[1]))


def test_a_known_liar_teaches_the_opposite() -> None:
    logits = torch.zeros(1, 2, requires_grad=True)
    matrix = torch.tensor([[0.1, 0.9], [0.9, 0.1]])
    hint_loss(logits, torch.tensor([0]), torch.ones(1), matrix).backward()
    assert logits.grad is not None
    assert logits.grad[0, 0] > 0 > logits.grad[0, 1]
