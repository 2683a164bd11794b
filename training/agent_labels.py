"""An agent's hints as labels to learn from, although some of them are wrong.

Knows hints, labels and logits; knows neither a head nor where hints come from.

    L = 1/Σ_i c_i Σ_i c_i · -log Σ_k p_k(x_i) T_k,h(i)

A hint h is explained by every expert k that an agent might have meant by it, T_kh = P(hint h | own
expert k): the forward correction of Patrini et al. 2017, "Making Deep Neural Networks Robust to
Label Noise", arXiv:1609.03683. A hint counts for as much as the agent was sure of it, c.
"""

from __future__ import annotations

import torch

# Rows that the assumed matrix weighs as much as, for each expert, beside those that were counted.
_ASSUMED_ROWS = 5.0


def noise_matrix(
    labels: torch.Tensor, hinted: torch.Tensor, experts: int, reliability: float
) -> torch.Tensor:
    """How often an agent says what about each expert's cases.

    Args:
        labels: [n] own experts of cases that have both.
        hinted: [n] the agent's.
        experts: K, at least 2.
        reliability: How often it is taken to be right where nothing was counted; its errors are
            then the same for all other experts.

    Returns:
        [K, K], float32, own expert to hint; rows sum to 1.
    """
    assumed = torch.full((experts, experts), (1 - reliability) / (experts - 1))
    assumed.fill_diagonal_(reliability)
    pairs = torch.bincount(labels * experts + hinted, minlength=experts * experts)
    counted = pairs.view(experts, experts) + _ASSUMED_ROWS * assumed
    return counted / counted.sum(dim=1, keepdim=True)


def hint_loss(
    logits: torch.Tensor, hinted: torch.Tensor, sure: torch.Tensor, matrix: torch.Tensor
) -> torch.Tensor:
    """The mean over hints, a scalar in nats.

    Args:
        logits: [n, K].
        hinted: [n], the agent's experts.
        sure: [n], how sure it was, above 0 for some.
        matrix: What `noise_matrix` gave.
    """
    said = (logits.softmax(dim=1) * matrix.T[hinted]).sum(dim=1)
    return -(sure * said.log()).sum() / sure.sum().clamp_min(torch.finfo(torch.float32).tiny)
