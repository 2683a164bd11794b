"""The agent as an expert witness: its hints, how far to believe them, and agents that are made up.

Knows posteriors, hints and labels; knows neither features nor a bundle's files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from router_service.manifest import AgentModel
from router_service.weights import pool
from training.calibration import golden_section

_HIGHEST_WEIGHT = 4.0
# Of a simulated agent's confidences: small, so that some of its hints are sure and some are not.
_SPREAD = 4.0

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Hints:
    """What an agent said about n cases.

    Attributes:
        expert: [n], index of the expert that it named; -1 where it named none.
        confidence: [n], its own; NaN where it gave none.
    """

    expert: Labels
    confidence: Floats

    def __getitem__(self, rows: npt.NDArray[Any]) -> Hints:
        return Hints(self.expert[rows], self.confidence[rows])

    @property
    def given(self) -> npt.NDArray[np.bool_]:
        """[n], whether there is a hint."""
        return self.expert >= 0

    def believed(self, reliability: float) -> Floats:
        """[n], the confidences, with the agent's reliability where it gave none."""
        return np.where(np.isnan(self.confidence), reliability, self.confidence)

    def without_confidence(self) -> Hints:
        """The same experts, and not how sure the agent was."""
        return Hints(self.expert, np.full(len(self.expert), np.nan))


def simulate(labels: Labels, experts: int, reliability: float, seed: int) -> Hints:
    """An agent that is right this often, knows how sure it may be, and errs apart from the router.

    Args:
        labels: [n].
        experts: K, at least 2; a wrong hint names any other expert as often as the next.
        reliability: Its expected share of right hints, in (0, 1).
        seed: Of everything drawn.

    Returns:
        Hints on all cases, each with the probability with which it was drawn right.
    """
    noise = np.random.default_rng(seed)
    n = len(labels)
    confidence = noise.beta(_SPREAD * reliability, _SPREAD * (1 - reliability), n)
    other = (labels + noise.integers(1, experts, n)) % experts
    return Hints(np.where(noise.random(n) < confidence, labels, other), confidence)


def measure_agent(posterior: Floats, labels: Labels, hints: Hints, source: str) -> AgentModel:
    """How far an agent is to be believed, by the hints it gave on labelled cases.

    The weight is the most probable one for the pooled distribution's log loss, with a normal prior
    of variance 1 around 1, which is Bayes' rule for an agent that errs apart from the head: a dozen
    hints cannot move it far. Reliability and ceiling are those of one right and one wrong hint more
    than there were (Laplace).

    Args:
        posterior: [n, K], the head's calibrated probabilities.
        labels: [n].
        hints: On at least one of the cases.
        source: `measured` or `simulated`.
    """
    given = hints.given
    posterior, labels, hints = posterior[given], labels[given], hints[given]
    n, right = len(labels), int((hints.expert == labels).sum())
    reliability, ceiling = (right + 1) / (n + 2), (n + 1) / (n + 2)

    def loss(weight: float) -> float:
        model = AgentModel(weight, reliability, ceiling, source, "")
        pooled = pool_all(posterior, hints, model)[np.arange(n), labels]
        likelihood = np.log(np.maximum(pooled, np.finfo(float).tiny)).sum()
        return float((weight - 1) ** 2 / 2 - likelihood)

    weight = golden_section(loss, 0.0, _HIGHEST_WEIGHT)
    why = f"{right} of {n} {source} hints were right; the weight is fitted to them"
    return AgentModel(weight, reliability, ceiling, source, why)


def pool_all(posterior: Floats, hints: Hints, agent: AgentModel) -> Floats:
    """[n, K], each case's posterior pooled with its hint; as it is where there is none."""
    believed = hints.believed(agent.reliability)
    return np.stack(
        [
            pool(heard, int(expert), float(confidence), agent.weight, agent.ceiling)
            if expert >= 0
            else heard
            for heard, expert, confidence in zip(posterior, hints.expert, believed, strict=True)
        ]
    )
