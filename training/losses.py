"""What the gated stages minimise: pure functions of logits, gates and their marginals.

Knows formulas and where they come from; knows no model, no step and no weight of a term.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F


def answer_loss(logits: Sequence[torch.Tensor], answers: Sequence[Sequence[int]]) -> torch.Tensor:
    """Cross-entropy of the answers, teacher-forced; every case counts the same, long or short.

        L = 1/n Σ_i 1/T_i Σ_t -log p(a_it | prompt_i, a_i,<t)

    Args:
        logits: [tokens, vocab] of each row, which ends before the answer's last token.
        answers: Token ids of each row's answer.

    Returns:
        Nats per token, a scalar.
    """
    losses = []
    for row, answer in zip(logits, answers, strict=True):
        target = torch.tensor(list(answer), device=row.device)
        losses.append(F.cross_entropy(row[-len(answer) :].float(), target))
    return torch.stack(losses).mean()


def entropy_penalty(probabilities: torch.Tensor) -> torch.Tensor:
    """Mean entropy of gate distributions, as a share of that of uniform gates.

        L = mean( -Σ_k p_k log p_k ) / log K

    Entropy minimisation, Grandvalet and Bengio 2004, "Semi-supervised Learning by Entropy
    Minimization".

    Args:
        probabilities: [..., K], each summing to 1.

    Returns:
        A scalar in [0, 1]: 0 for one-hot gates, 1 for uniform ones.
    """
    experts = probabilities.shape[-1]
    if experts == 1:
        return probabilities.sum() * 0.0
    # At p = 0 the slope of p log p is infinite, and a softmax that underflowed would make it NaN.
    entropy: torch.Tensor = torch.special.entr(probabilities.clamp_min(_SMALLEST)).sum(dim=-1)
    return entropy.mean() / math.log(experts)


def divergence(anchor: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """How far gates have moved from those of a head that stays.

        L = mean( Σ_k q_k (log q_k - log p_k) )

    In this direction an expert that the anchor gives a share may not be dropped. The divergence of
    Kullback and Leibler 1951, used as in distillation: Hinton et al. 2015, arXiv:1503.02531.

    Args:
        anchor: q [..., K], each summing to 1.
        probabilities: p [..., K], each summing to 1.

    Returns:
        Nats, a scalar, not negative; 0 for equal distributions.
    """
    anchor = anchor.clamp_min(_SMALLEST)
    moved = anchor.log() - probabilities.clamp_min(_SMALLEST).log()
    return (anchor * moved).sum(dim=-1).mean()


def balance_loss(marginals: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How far the gates' marginals are from those of the labels.

        L = Σ_k π_k (log π_k - log m_k)

    The gating balancing loss of MoLE, -Σ_k log m_k (Wu et al. 2024, "Mixture of LoRA Experts",
    arXiv:2404.13628), with the label marginals π in the place of equal shares and less its own
    minimum, so that it is 0 at m = π.

    Args:
        marginals: m [K], the mean gates, summing to 1.
        labels: π [K], the shares of the labels, summing to 1; an expert without any is left out.

    Returns:
        Nats, a scalar, not negative.
    """
    named = labels > 0
    share, gate = labels[named], marginals[named].clamp_min(_SMALLEST)
    return (share * (share.log() - gate.log())).sum()


def least_share(marginals: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The smallest part of its share that any expert gets, min_k m_k / π_k.

    Args:
        marginals: m [K].
        labels: π [K]; an expert without labels is left out.

    Returns:
        A scalar in [0, 1]: 1 where the gates' marginals are those of the labels, 0 where an expert
        gets nothing.
    """
    named = labels > 0
    return (marginals[named] / labels[named]).min()


# Below it a probability counts as none; its logarithm is still finite.
_SMALLEST = torch.finfo(torch.float32).tiny
