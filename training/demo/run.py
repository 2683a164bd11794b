"""Sends cases through the SDK, each in every way, and scores the answers.

Knows the client and the scoring; knows neither processes nor how results are shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from molora_client import Generation, Molora, Routed
from training.data.calls import ToolCall
from training.demo.cases import Case
from training.scoring import matches, parse_calls

# An answer is two calls at most; the base alone may ramble.
MAX_NEW_TOKENS = 96

Result = TypeVar("Result")


@dataclass(frozen=True)
class Answer:
    """One generated answer; `calls` is empty where the text cannot be read."""

    text: str
    calls: tuple[ToolCall, ...]
    right: bool


@dataclass(frozen=True)
class CaseResult:
    """Everything that was asked about one case.

    Attributes:
        routed: The decision of Route.
        route_ms: Route as the client saw it.
        predict_ms: Predict as the client saw it.
        prediction: The answer of Predict, under the router's gates.
        oracle: The answer of the case's own expert.
        base: The answer without any expert.
        other: An expert whose case this is not.
        wrong: The answer of that one.
    """

    case: Case
    routed: Routed
    route_ms: float
    predict_ms: float
    prediction: Answer
    oracle: Answer
    base: Answer
    other: str
    wrong: Answer

    @property
    def routed_expert(self) -> str:
        """The expert with the largest gate."""
        return max(self.routed.gates, key=self.routed.gates.__getitem__)

    @property
    def route_right(self) -> bool:
        """Whether the case's own expert got the largest gate."""
        return self.routed_expert == self.case.expert


def run_case(client: Molora, case: Case, other: str) -> CaseResult:
    """Routes and answers one case in every way.

    Args:
        client: Connected to both services.
        case: The case.
        other: The wrong expert to ask.

    Returns:
        Decision, answers and timings.

    Raises:
        MoloraError: A call failed.
    """
    routed, route_ms = _timed(lambda: client.route(case.prompt, case.screen))
    prediction, predict_ms = _timed(
        lambda: client.predict(case.prompt, case.screen, max_new_tokens=MAX_NEW_TOKENS)
    )
    base = client.generate(
        case.prompt, routed.context, base_only=True, max_new_tokens=MAX_NEW_TOKENS
    )
    return CaseResult(
        case=case,
        routed=routed,
        route_ms=route_ms,
        predict_ms=predict_ms,
        prediction=answer(case, prediction.generation),
        oracle=answer(case, ask_expert(client, case, routed, case.expert)),
        base=answer(case, base),
        other=other,
        wrong=answer(case, ask_expert(client, case, routed, other)),
    )


def ask_expert(client: Molora, case: Case, routed: Routed, expert: str) -> Generation:
    """The answer of one expert on the context that routing left behind.

    Raises:
        MoloraError: The call failed.
    """
    return client.generate(
        case.prompt,
        routed.context,
        expert=expert,
        expert_set=routed.expert_set,
        max_new_tokens=MAX_NEW_TOKENS,
    )


def answer(case: Case, generation: Generation) -> Answer:
    """Scores a generation."""
    calls = parse_calls(generation.text)
    return Answer(generation.text, calls, matches(case.expected, calls, case.tolerance))


def _timed(call: Callable[[], Result]) -> tuple[Result, float]:
    start = time.perf_counter()
    result = call()
    return result, (time.perf_counter() - start) * 1000
