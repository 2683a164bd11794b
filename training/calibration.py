"""Temperature scaling and the measures around it. Knows logits and labels, no model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

_GOLDEN = (math.sqrt(5) - 1) / 2
_LOWEST, _HIGHEST = 0.02, 50.0


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The temperature of least log loss on held-out cases (Guo et al. 2017).

    A head that makes no mistake on the cases would be sharpened without end, so the targets are
    Platt's (1999): of n cases, the right expert gets (n + 1) / (n + 2).

    Args:
        logits: [n, K] float32.
        labels: [n] int64.

    Returns:
        The temperature, in [0.02, 50].
    """
    cases, experts = logits.shape
    if experts == 1:
        return 1.0
    right = (cases + 1) / (cases + 2)
    targets = torch.full((cases, experts), (1 - right) / (experts - 1), dtype=torch.float64)
    targets[torch.arange(cases), labels] = right
    exact = logits.double()

    def loss(log_temperature: float) -> float:
        log_probabilities = torch.log_softmax(exact / math.exp(log_temperature), dim=1)
        return float(-(targets * log_probabilities).sum(dim=1).mean())

    return math.exp(golden_section(loss, math.log(_LOWEST), math.log(_HIGHEST)))


def log_loss(logits: torch.Tensor, labels: torch.Tensor, temperature: float) -> float:
    """Mean negative log-likelihood in nats; logits [n, K], labels [n]."""
    return float(torch.nn.functional.cross_entropy(logits.double() / temperature, labels))


@dataclass(frozen=True)
class Bin:
    """Cases of like confidence.

    Attributes:
        cases: At least one.
        confidence: Their mean.
        accuracy: Share of them that are right.
    """

    cases: int
    confidence: float
    accuracy: float


def reliability_bins(
    logits: torch.Tensor, labels: torch.Tensor, temperature: float, bins: int = 15
) -> tuple[Bin, ...]:
    """Accuracy against confidence, over equally wide bins of confidence that are not empty.

    Args:
        logits: [n, K].
        labels: [n].
        temperature: Softmax temperature.
        bins: Number of bins over [0, 1].
    """
    confidence, predicted = torch.softmax(logits.double() / temperature, dim=1).max(dim=1)
    correct = (predicted == labels).double()
    bin_of = (confidence * bins).long().clamp(max=bins - 1)
    return tuple(
        Bin(int(own.sum()), float(confidence[own].mean()), float(correct[own].mean()))
        for own in (bin_of == number for number in range(bins))
        if own.any()
    )


def expected_calibration_error(
    logits: torch.Tensor, labels: torch.Tensor, temperature: float, bins: int = 15
) -> float:
    """Mean gap between confidence and accuracy over the bins, weighted by their cases; in [0, 1].

    Arguments as for `reliability_bins`.
    """
    found = reliability_bins(logits, labels, temperature, bins)
    return sum(each.cases * abs(each.confidence - each.accuracy) for each in found) / len(labels)


def golden_section(loss: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one valley is least, to 1e-6."""
    inner_low, inner_high = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    loss_low, loss_high = loss(inner_low), loss(inner_high)
    while high - low > 1e-6:
        if loss_low < loss_high:
            high, inner_high, loss_high = inner_high, inner_low, loss_low
            inner_low = high - _GOLDEN * (high - low)
            loss_low = loss(inner_low)
        else:
            low, inner_low, loss_low = inner_low, inner_high, loss_high
            inner_high = low + _GOLDEN * (high - low)
            loss_high = loss(inner_high)
    return (low + high) / 2
