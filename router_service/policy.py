"""The head's output, the agent's hint and the caller's options to gates and a reason. Pure; numpy.

Knows neither features nor the executor. The rules, first match wins:

1. An override gets everything: MANUAL_OVERRIDE.
2. The agent asks for the fast path and is sure enough: its expert gets everything, before any
   feature is extracted: AGENT_FAST_PATH.
3. The screen is farther from all known ones than the threshold: ABSTAINED. What comes instead is
   the router's setting: an error, the base without experts, or the two best experts.
4. No hint: the head's weights: ROUTER.
5. The agent names the head's own best expert: the pooled weights: AGENT_ACCEPTED.
6. They disagree and pooled the agent's expert is best, and surely so: AGENT_ACCEPTED.
7. They disagree and pooled the head's expert is best, and surely so: AGENT_VETOED.
8. Neither is sure: the head's best and the agent's expert share, whatever the mode: TOP2_FALLBACK.

A head with logits for every decoder layer is heard layer by layer in 4; the gates for all layers
are then their mean. An agent speaks of the request as a whole: where it is heard, layers are alike.

Weights are masked, then reduced by the mode, then divided by their sum. In 3 to 8 the head is heard
after masking: an expert that the caller ruled out can neither win nor veto. Between the two in
dispute nobody else can win: the agent says nothing about the rest, so pooling keeps its order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from router_service.core import Abstention, Decision, HeadOutput, Hint, Mode, Options, Reason
from router_service.errors import InvalidArgument, unknown_expert
from router_service.manifest import (
    AbstentionRule,
    AgentModel,
    ModeSetting,
    TemperatureSetting,
    Thresholds,
)
from router_service.weights import Weights, entropy, one_hot, only, pool, reduce_weights, softmax


@dataclass(frozen=True)
class PolicyConfig:
    """What is in force for every request that does not say otherwise.

    Attributes:
        experts: Names, in head order.
        agent: How far hints are believed; None: they have no weight.
        abstention: Which screens no expert knows; None: the bundle cannot tell.
        outcome: What happens to them.
    """

    experts: tuple[str, ...]
    mode: ModeSetting
    temperature: TemperatureSetting
    thresholds: Thresholds
    agent: AgentModel | None = None
    abstention: AbstentionRule | None = None
    outcome: Abstention = Abstention.ERROR


@dataclass(frozen=True)
class Ask:
    """A checked request: experts as indices, defaults filled in.

    Attributes:
        mode: How the head's weights are reduced.
        temperature: Softmax temperature.
        allowed: [K], False for masked experts; at least one is True.
        override: Expert that gets everything.
        hinted: Expert that the agent named.
        hint_confidence: The agent's own probability, or its measured reliability where it gave
            none; None where neither is known.
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
            hint_confidence=self._confidence(hint),
            fast_path=hint is not None and hint.fast_path,
        )

    def without_features(self, ask: Ask) -> Decision | None:
        """The decision that needs no look at the screen (rule 2), or None."""
        confidence, needed = ask.hint_confidence, self.config.thresholds.agent_fast_path
        if ask.override is not None or ask.hinted is None or not ask.fast_path:
            return None
        if confidence is None or not needed.reached_by(confidence):
            return None
        return Decision(
            gates=self._named(one_hot(len(self._index), ask.hinted)),
            probabilities={},
            reason=Reason.AGENT_FAST_PATH,
            confidence=confidence,
            entropy=0.0,
        )

    def decide(self, ask: Ask, output: HeadOutput) -> Decision:
        """The decision for what the head says.

        Args:
            ask: From `check`.
            output: The head's.
        """
        scores = output.logits.astype(np.float64)
        probabilities = softmax(scores, ask.temperature)
        heard = probabilities
        if not all(ask.allowed):
            # Masked before the softmax, so that what remains never underflows to nothing.
            heard = softmax(np.where(ask.allowed, scores, -np.inf), ask.temperature)
        weights, reason = self._weigh(ask, heard, output.distance)
        layers: tuple[Weights, ...] = ()
        if reason is Reason.ROUTER and output.layers is not None:
            layers = self._by_layer(ask, output.layers)
            weights = np.mean(layers, axis=0)
        return Decision(
            gates=self._named(weights),
            probabilities=dict(zip(self.config.experts, probabilities.tolist(), strict=True)),
            reason=reason,
            confidence=float(probabilities.max()),
            entropy=entropy(probabilities),
            abstention=self.config.outcome if reason is Reason.ABSTAINED else None,
            distance=output.distance,
            layers=tuple(self._named(each) for each in layers),
        )

    def _by_layer(self, ask: Ask, logits: npt.NDArray[np.float32]) -> tuple[Weights, ...]:
        """Rule 4 for each decoder layer."""
        scores = np.where(ask.allowed, logits.astype(np.float64), -np.inf)
        return tuple(reduce_weights(softmax(each, ask.temperature), ask.mode) for each in scores)

    def _weigh(self, ask: Ask, heard: Weights, distance: float | None) -> tuple[Weights, Reason]:
        """Rules 1 and 3 to 5 on the head's distribution after masking."""
        if ask.override is not None:
            return one_hot(len(heard), ask.override), Reason.MANUAL_OVERRIDE
        pooled = self._pooled(ask, heard)
        if self._is_unknown(distance):
            shared = self.config.outcome is Abstention.TOP2
            weights = reduce_weights(pooled, Mode.TOP2) if shared else np.zeros_like(pooled)
            return weights, Reason.ABSTAINED
        if ask.hinted is None:
            return reduce_weights(heard, ask.mode), Reason.ROUTER
        best = int(heard.argmax())
        if ask.hinted == best:
            return reduce_weights(pooled, ask.mode), Reason.AGENT_ACCEPTED
        return self._settle(ask.hinted, best, pooled, ask.mode)

    def _settle(
        self, hinted: int, best: int, pooled: Weights, mode: Mode
    ) -> tuple[Weights, Reason]:
        """Rules 6 to 8: agent and head disagree."""
        limits, agents, heads = self.config.thresholds, pooled[hinted], pooled[best]
        if agents > heads and limits.agent_accept.reached_by(agents):
            return reduce_weights(pooled, mode), Reason.AGENT_ACCEPTED
        if heads > agents and limits.agent_veto.reached_by(heads):
            return reduce_weights(pooled, mode), Reason.AGENT_VETOED
        return only(pooled, [best, hinted]), Reason.TOP2_FALLBACK

    def _pooled(self, ask: Ask, heard: Weights) -> Weights:
        agent = self.config.agent
        if ask.hinted is None or ask.hint_confidence is None or agent is None:
            return heard
        return pool(heard, ask.hinted, ask.hint_confidence, agent.weight, agent.ceiling)

    def _is_unknown(self, distance: float | None) -> bool:
        rule = self.config.abstention
        if rule is None or rule.threshold is None or distance is None:
            return False
        return distance > rule.threshold

    def _confidence(self, hint: Hint | None) -> float | None:
        if hint is None or hint.confidence is not None or self.config.agent is None:
            return hint.confidence if hint else None
        return self.config.agent.reliability

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
