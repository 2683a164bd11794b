"""Features as standard scores: of the rows that are learnt from, and at first as they are."""

from __future__ import annotations

import torch

from training.heads import RouterHead, Standardised


def test_scores_have_mean_0_and_deviation_1_whatever_the_sizes():
    sizes = torch.tensor([0.5, 1.0, 50.0])
    rows = 7 + sizes * torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    scale = Standardised(3)
    assert torch.equal(scale(rows), rows)
    scale.learn(rows, torch.arange(len(rows)))
    scores = scale(rows)
    torch.testing.assert_close(scores.mean(dim=0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(scores.std(dim=0, correction=0), torch.ones(3), atol=1e-4, rtol=0)


def test_what_never_varies_stays_finite():
    rows = torch.tensor([[3.0, 0.0], [3.0, 1.0]])
    scale = Standardised(2)
    scale.learn(rows, torch.arange(len(rows)))
    # 0.01 of the mean spread, 0.25: an unusual value counts, but does not drown the others.
    torch.testing.assert_close(scale(torch.tensor([[3.1, 0.5]])), torch.tensor([[40.0, 0.0]]))
    constant = Standardised(1)
    constant.learn(torch.full((4, 1), 2.0), torch.arange(4))
    assert constant(torch.full((1, 1), 2.0)).item() == 0.0


def test_the_scores_are_kept_with_the_head_but_not_trained():
    head = RouterHead(3, 4, 2, 8, 0.0)
    trained = {name for name, _ in head.named_parameters()}
    kept = {f"{part}_scale.{name}" for part in ("text", "vision") for name in ("mean", "spread")}
    assert kept <= set(head.state_dict())
    assert not kept & trained
