"""Distributions over experts: softmax, pooling, reduction, entropy. Pure; numpy only.

Knows no expert by name, no threshold and no reason.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from router_service.core import Mode

# [K] float64, in the order of the head's logits.
Weights = npt.NDArray[np.float64]


def softmax(scores: Weights, temperature: float) -> Weights:
    """exp(s / t) / sum exp(s / t); minus infinity gets 0.

    Args:
        scores: [K]; the largest is finite.
        temperature: Above 0.
    """
    # Shifted before the division: a tiny temperature then underflows to 0 and makes no NaN.
    with np.errstate(over="ignore"):
        grown = np.exp((scores - scores.max()) / temperature)
    result: Weights = grown / grown.sum()
    return result


def entropy(probabilities: Weights) -> float:
    """Shannon entropy in nats; 0 log 0 is 0."""
    positive = probabilities[probabilities > 0]
    return float(max(0.0, -(positive * np.log(positive)).sum()))


def reduce_weights(weights: Weights, mode: Mode) -> Weights:
    """Keep what the mode keeps, divided by its sum.

    Args:
        weights: [K], not negative, sum above 0.
        mode: SOFT keeps all, TOP1 and TOP2 the heaviest; ties go to the earlier expert.

    Returns:
        [K], sum 1.
    """
    keep = {Mode.SOFT: len(weights), Mode.TOP1: 1, Mode.TOP2: 2}[mode]
    return only(weights, np.argsort(-weights, kind="stable")[:keep].tolist())


def pool(heard: Weights, hinted: int, confidence: float, weight: float, ceiling: float) -> Weights:
    """The head's distribution p and the agent's q, pooled log-linearly: p * q^weight / sum.

    q gives the agent's confidence to its expert and shares the rest evenly among the others. Less
    than an even share is taken for that share: to name an expert is not to advise against it. With
    weight 1 this is Bayes' rule for an agent that errs independently of the head; a fitted weight
    makes up for one that does not (Genest and Zidek 1986).

    Args:
        heard: [K], p: the head's distribution after masking.
        hinted: The agent's expert.
        confidence: In [0, 1]; more than the ceiling is taken for the ceiling.
        weight: Not negative; 0 leaves p.
        ceiling: In [0.5, 1).

    Returns:
        [K], sum 1; 0 where p is.
    """
    if len(heard) == 1:
        return heard
    believed = min(max(confidence, 1 / len(heard)), ceiling)
    said = np.full(len(heard), (1 - believed) / (len(heard) - 1))
    said[hinted] = believed
    with np.errstate(divide="ignore"):
        return softmax(np.log(heard) + weight * np.log(said), 1.0)


def only(weights: Weights, kept: Sequence[int]) -> Weights:
    """The weights of some experts, divided by their sum, which is above 0."""
    result = np.zeros_like(weights)
    result[kept] = weights[kept] / weights[kept].sum()
    return result


def one_hot(size: int, index: int) -> Weights:
    """Everything for one expert of [K]."""
    result: Weights = np.zeros(size)
    result[index] = 1.0
    return result
