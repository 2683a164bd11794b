"""Asks the services about one case in every way, and scores the answers.

Knows the client and the scoring; knows neither processes nor how anything is counted.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypedDict

from molora_client import (
    AsyncMolora,
    FailedPreconditionError,
    FinishReason,
    Prompt,
    Routed,
    RoutingMode,
    RoutingOptions,
)
from molora_client.inputs import Screen
from training.evaluation.answers import AnswerBook, LayerGates, Said, question_of
from training.evaluation.core import Answer, Case, CaseResult, Decision

BLANK = "."
"""A text that says nothing; an empty one is refused."""


@dataclass(frozen=True)
class Ways:
    """What is the same for every case.

    Attributes:
        experts: That the router knows, in its order.
        expert_set: Digest of all that are loaded, which must not change meanwhile.
        max_new_tokens: Longest answer.
        seed: Of the expert that chance picks.
        book: Answers that are known already.
    """

    experts: tuple[str, ...]
    expert_set: str
    max_new_tokens: int
    seed: int
    book: AnswerBook = field(default_factory=AnswerBook)


async def ask_case(client: AsyncMolora, case: Case, other: Case, ways: Ways) -> CaseResult:
    """Routes and answers one case in every way.

    Args:
        client: Connected to both services.
        case: The case.
        other: Whose screen it gets in the control.
        ways: How it is asked.

    Raises:
        MoloraError: A call failed.
    """
    prompt, held = Prompt(case.prompt, case.system), case.screen.read_bytes()
    routed = {"soft": await _route(client, prompt, held, RoutingMode.SOFT)}
    screen = routed["soft"].context if routed["soft"] else held
    for hard in (RoutingMode.TOP1, RoutingMode.TOP2):
        routed[hard.value] = await _route(client, prompt, screen, hard)
    decisions = {mode: _decision(found) for mode, found in routed.items()}
    answers = _Answers(client, case, prompt, screen, ways)
    by_expert = {name: await answers.under({name: 1.0}) for name in ways.experts}
    given: dict[str, Answer | None] = {
        "oracle": by_expert[case.expert],
        "uniform": await answers.under(dict.fromkeys(ways.experts, 1 / len(ways.experts))),
        "random": by_expert[_by_chance(case, ways)],
        "base": await answers.under({}),
    }
    for mode, found in routed.items():
        given[mode] = await answers.under(found.gates, found.layer_gates) if found else None
    first = decisions["top1"].expert if decisions["top1"] else None
    maskable = first is not None and len(ways.experts) > 1
    return CaseResult(
        case=case,
        decisions=decisions,
        answers=given,
        by_expert=by_expert,
        second=await _choice(client, prompt, screen, masked=first) if maskable else None,
        other_screen=other.expert,
        with_other_screen=await _choice(client, prompt, other.screen),
        without_text=await _choice(client, Prompt(BLANK), screen),
    )


class _Gating(TypedDict):
    """Which experts run, as `generate` and `score` take it."""

    gates: Mapping[str, float] | None
    layer_gates: LayerGates
    base_only: bool
    expert_set: str


class _Answers:
    """Answers to one case. Gates that were asked before are not asked again: greedy is greedy."""

    def __init__(
        self, client: AsyncMolora, case: Case, prompt: Prompt, screen: Screen, ways: Ways
    ) -> None:
        self._client = client
        self._case = case
        self._prompt = prompt
        self._screen = screen
        self._ways = ways

    async def under(self, gates: Mapping[str, float], layers: LayerGates | None = None) -> Answer:
        """The answer under gates, for all layers or by layer; the base alone without any."""
        case, ways, layers = self._case, self._ways, layers or {}
        question = question_of(case, gates, layers, ways.expert_set, ways.max_new_tokens)
        said = ways.book.find(question)
        if said is None:
            said = await self._ask(gates, layers)
            ways.book.add(question, said)
        return said.on(case)

    async def _ask(self, gates: Mapping[str, float], layers: LayerGates) -> Said:
        case, ways = self._case, self._ways
        gating: _Gating = {
            "gates": gates or None,
            "layer_gates": layers,
            "base_only": not gates,
            "expert_set": ways.expert_set,
        }
        generation = await self._client.generate(
            self._prompt, self._screen, max_new_tokens=ways.max_new_tokens, **gating
        )
        scored = await self._client.score(self._prompt, self._screen, case.target, **gating)
        return Said(
            text=generation.text,
            cut=generation.finish_reason is FinishReason.LENGTH,
            loss=-sum(scored.log_probabilities) / len(scored.log_probabilities),
        )


async def _route(
    client: AsyncMolora, prompt: Prompt, screen: Screen, mode: RoutingMode, *masked: str
) -> Routed | None:
    """A decision; None where the router abstains and answers with an error."""
    options = RoutingOptions(mode=mode, masked_experts=masked)
    try:
        return await client.route(prompt, screen, options=options)
    except FailedPreconditionError as error:
        if error.reason != "ABSTAINED":
            raise
        return None


async def _choice(
    client: AsyncMolora, prompt: Prompt, screen: Screen, *, masked: str | None = None
) -> str | None:
    """Whom the router chooses."""
    found = await _route(client, prompt, screen, RoutingMode.TOP1, *([masked] if masked else []))
    decision = _decision(found)
    return decision.expert if decision else None


def _decision(routed: Routed | None) -> Decision | None:
    """What is kept of a decision: not its context, which holds the screen."""
    if routed is None:
        return None
    return Decision(routed.gates, routed.probabilities, routed.reason.value, routed.entropy)


def _by_chance(case: Case, ways: Ways) -> str:
    noise = random.Random(f"{ways.seed}/{case.id}")  # noqa: S311 - no secret
    return noise.choice(ways.experts)
