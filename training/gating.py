"""Logits to gates while training: temperature and its schedule, and the estimators of hard gates.

Knows distributions and their gradients; knows no router, no loss and no step's number.
"""

from __future__ import annotations

import math

import torch

from executor_service.core import RoutingMode
from training.run_config import Gates

_KEPT = {RoutingMode.TOP1: 1, RoutingMode.TOP2: 2}


def temperature_at(gates: Gates, step: int, steps: int) -> float:
    """The temperature of a step.

        linear:       τ = τ₀ + (τ₁ - τ₀) s
        cosine:       τ = τ₁ + (τ₀ - τ₁) (1 + cos π s) / 2
        exponential:  τ = τ₀ (τ₁ / τ₀)^s        (Jang et al. 2017, arXiv:1611.01144, section 2.2)

    Args:
        gates: Start, end and shape.
        step: From 0.
        steps: Of the whole run; s is 0 in the first and 1 in the last.
    """
    start, end = gates.temperature_start, gates.temperature_end
    done = min(step / max(steps - 1, 1), 1.0)
    if gates.temperature_shape == "linear":
        return start + (end - start) * done
    if gates.temperature_shape == "cosine":
        return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
    return start * float((end / start) ** done)


class TrainingPolicy:
    """A `GatePolicy` that learns through its gates.

    Args:
        gates: Which estimator.

    Attributes:
        temperature: Divides the logits; set for every step.
        noise: Gumbel noise is drawn from it; set for every step.
    """

    def __init__(self, gates: Gates) -> None:
        self._gates = gates
        self.temperature = gates.temperature_start
        self.noise = torch.Generator()

    def __call__(
        self, router_logits: torch.Tensor, mode: RoutingMode, top_k: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities, without noise, and gates, both float32 in the shape of the logits.

        Args:
            router_logits: [rows, experts], or [rows, layers, experts] for gates per layer.
            mode: Its number of experts, where `top_k` does not say one.
            top_k: Experts that keep a gate; not used by `soft`.
        """
        logits = router_logits.float() / self.temperature
        probabilities = logits.softmax(dim=-1)
        kept = top_k or _KEPT.get(mode, self._gates.top_k)
        if self._gates.estimator == "soft":
            return probabilities, probabilities
        if self._gates.estimator == "straight_through":
            return probabilities, straight_through(probabilities, kept)
        noise = gumbel(logits.shape, self.noise).to(logits.device)
        return probabilities, straight_through((logits + noise).softmax(dim=-1), kept)


def straight_through(probabilities: torch.Tensor, kept: int) -> torch.Tensor:
    """The best experts' gates, with the gradient of the probabilities.

        g = top_k(p) / Σ top_k(p),  ∂g := ∂p

    Bengio et al. 2013, arXiv:1308.3432; for Gumbel-softmax samples it is the straight-through
    estimator of Jang et al. 2017, arXiv:1611.01144, section 2.2.

    Args:
        probabilities: [..., K].
        kept: Experts that keep a gate.

    Returns:
        [..., K]; all but `kept` are exactly 0, and a single one is exactly 1.
    """
    best = probabilities.topk(min(kept, probabilities.shape[-1]), dim=-1).indices
    hard = torch.zeros_like(probabilities).scatter(-1, best, 1.0) * probabilities.detach()
    # p - p is exactly zero, so what is applied is the hard gate to the last bit.
    return hard / hard.sum(dim=-1, keepdim=True) + (probabilities - probabilities.detach())


def gumbel(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Gumbel(0, 1) noise, -log E with E exponential; the best of logits + noise is a sample.

    Args:
        shape: Of the noise.
        generator: On the CPU, so that every device draws the same.
    """
    return -torch.empty(shape).exponential_(generator=generator).log()
