"""Logits, the agent's hint and the caller's options to gates and a reason. Pure; numpy only.

Knows neither features nor the executor. The rules, first match wins:

1. An override gets everything: MANUAL_OVERRIDE.
2. The agent asks for the fast path and is sure enough: its expert gets everything, before any
   feature is extracted: AGENT_FAST_PATH.
3. No hint: the head's weights: ROUTER.
4. The agent names the head's own best expert: the head's weights: AGENT_ACCEPTED.
5. The head is sure enough to overrule: the head's weights: AGENT_VETOED.
6. The agent is sure enough and the head is not: the agent's expert gets everything: AGENT_ACCEPTED.
7. Neither is: the head's best and the agent's expert share, whatever the mode: TOP2_FALLBACK.

"The head's weights" are masked, then reduced by the mode, then divided by their sum. In 4 to 7 the
head is heard after masking: an expert that the caller ruled out can neither win nor veto.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from router_service.core import (
    Decision,
    Hint,
    Mode,
    ModeSetting,
    Options,
    Reason,
    TemperatureSetting,
    Thresholds,
)
from router_service.errors import InvalidArgument, unknown_expert

# [K] float64, in the order of the head's logits.
Weights = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PolicyConfig:
    """What is in force for every request that does not say otherwise; `experts` in head order."""

    experts: tuple[str, ...]
    mode: ModeSetting
    temperature: TemperatureSetting
    thresholds: Thresholds


@dataclass(frozen=True)
class Ask:
    """A checked request: experts as indices, defaults filled in.

    Attributes:
        mode: How the head's weights are reduced.
        temperature: Softmax temperature.
        allowed: [K], False for masked experts; at least one is True.
        override: Expert that gets everything.
        hinted: Expert that the agent named.
        hint_confidence: The agent's own probability; None if it gave none.
        fast_path: The agent asks to be answered without features.
    """

    mode: Mode
    temperature: float
    allowed: tuple[bool, ...]
    override: int | None = None
    hinted: int | None = None
    hint_confidence: float | None = None
    fast_path: bool = False


class Policy:
    """The rules, over one bundle's experts. Holds no state between requests.

    Args:
        config: What is in force; readable as `config`.
    """

    def __init__(self, config: PolicyConfig) -> None:
        self.config = config
        self._index = {name: index for index, name in enumerate(config.experts)}

    def check(self, hint: Hint | None, options: Options) -> Ask:
        """Check what the caller wrote, before anything is extracted for it.

        Raises:
            NotFound: UNKNOWN_EXPERT, in the hint, the mask or the override.
            InvalidArgument: ALL_MASKED; EXPERT_MASKED, the hint or the override names a masked
                expert; BAD_TEMPERATURE; BAD_CONFIDENCE; EMPTY_EXPERT.
        """
        masked = {self._find(name, "masked_experts") for name in options.masked_experts}
        if len(masked) == len(self._index):
            raise InvalidArgument(
                "ALL_MASKED", "Every expert is masked; leave at least one of them unmasked."
            )
        temperature = options.temperature
        if temperature is not None and not (math.isfinite(temperature) and temperature > 0):
            raise InvalidArgument("BAD_TEMPERATURE", "The temperature must be finite and above 0.")
        if hint is not None and hint.confidence is not None and not 0 <= hint.confidence <= 1:
            raise InvalidArgument("BAD_CONFIDENCE", "The hint's confidence must be in [0, 1].")
        return Ask(
            mode=options.mode or self.config.mode.value,
            temperature=temperature or self.config.temperature.value,
            allowed=tuple(index not in masked for index in range(len(self._index))),
            override=self._choose(options.expert_override, "expert_override", masked),
            hinted=self._choose(hint.expert if hint else None, "agent_hint", masked),
            hint_confidence=hint.confidence if hint else None,
            fast_path=hint is not None and hint.fast_path,
        )

    def without_features(self, ask: Ask) -> Decision | None:
        """The decision that needs no look at the screen (rule 2), or None."""
        confidence, needed = ask.hint_confidence, self.config.thresholds.agent_fast_path.value
        if ask.override is not None or ask.hinted is None or not ask.fast_path:
            return None
        if confidence is None or confidence < needed:
            return None
        return Decision(
            gates=self._named(_one_hot(len(self._index), ask.hinted)),
            probabilities={},
            reason=Reason.AGENT_FAST_PATH,
            confidence=confidence,
            entropy=0.0,
        )

    def decide(self, ask: Ask, logits: npt.NDArray[np.float32]) -> Decision:
        """The decision for the head's logits.

        Args:
            ask: From `check`.
            logits: [K] float32, finite.
        """
        scores = logits.astype(np.float64)
        probabilities = softmax(scores, ask.temperature)
        # Masked before the softmax, so that what remains never underflows to nothing.
        heard = softmax(np.where(ask.allowed, scores, -np.inf), ask.temperature)
        weights, reason = self._weigh(ask, heard)
        return Decision(
            gates=self._named(weights),
            probabilities=dict(zip(self.config.experts, probabilities.tolist(), strict=True)),
            reason=reason,
            confidence=float(probabilities.max()),
            entropy=entropy(probabilities),
        )

    def _weigh(self, ask: Ask, heard: Weights) -> tuple[Weights, Reason]:
        """Rules 1 and 3 to 7 on the head's distribution after masking."""
        limits, best = self.config.thresholds, int(heard.argmax())
        if ask.override is not None:
            return _one_hot(len(heard), ask.override), Reason.MANUAL_OVERRIDE
        if ask.hinted is None:
            return reduce_weights(heard, ask.mode), Reason.ROUTER
        if ask.hinted == best:
            return reduce_weights(heard, ask.mode), Reason.AGENT_ACCEPTED
        if heard[best] >= limits.agent_veto.value:
            return reduce_weights(heard, ask.mode), Reason.AGENT_VETOED
        if ask.hint_confidence is not None and ask.hint_confidence >= limits.agent_accept.value:
            return _one_hot(len(heard), ask.hinted), Reason.AGENT_ACCEPTED
        return _share(heard, best, ask.hinted, ask.hint_confidence), Reason.TOP2_FALLBACK

    def _named(self, weights: Weights) -> dict[str, float]:
        """The weights that are above 0 as float32, by name."""
        exact = weights.astype(np.float32).tolist()
        return {
            name: weight
            for name, weight in zip(self.config.experts, exact, strict=True)
            if weight > 0
        }

    def _find(self, name: str, field: str) -> int:
        if not name:
            raise InvalidArgument("EMPTY_EXPERT", "An expert's name is empty.", field=field)
        if name not in self._index:
            raise unknown_expert(name, field)
        return self._index[name]

    def _choose(self, name: str | None, field: str, masked: set[int]) -> int | None:
        if name is None:
            return None
        index = self._find(name, field)
        if index in masked:
            raise InvalidArgument(
                "EXPERT_MASKED",
                "The expert that is asked for is masked in the same request; choose one of both.",
                expert=name,
                field=field,
            )
        return index


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
    return _only(weights, np.argsort(-weights, kind="stable")[:keep].tolist())


def _share(heard: Weights, best: int, hinted: int, confidence: float | None) -> Weights:
    """The head's best and the agent's expert, each by what its speaker gives it.

    An agent without a confidence is given what the head gives to its expert.
    """
    shared = heard.copy()
    if confidence is not None:
        shared[hinted] = confidence
    return _only(shared, [best, hinted])


def _only(weights: Weights, kept: Sequence[int]) -> Weights:
    result = np.zeros_like(weights)
    result[kept] = weights[kept] / weights[kept].sum()
    return result


def _one_hot(size: int, index: int) -> Weights:
    result: Weights = np.zeros(size)
    result[index] = 1.0
    return result
