"""Which cases a report shows, and what it needs to draw them. Knows results; counts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from training.evaluation.core import Answer, CaseResult
from training.pages import Mark, answer_text, data_url, mark_size, marks

SHOWN_MODES = ("top1", "soft", "oracle", "uniform", "base")


@dataclass(frozen=True)
class Example:
    """A case on the page.

    Attributes:
        image: The screen as a `data:` address.
        expected: Where the calls should point.
        given: Where those of `top1` point.
        gates: (expert, gate in soft mode, probability), the heaviest first.
        answers: (mode, calls in words, right, loss in nats a token).
        mark_size: Of a mark, in pixels of the screen.
    """

    result: CaseResult
    image: str
    expected: Sequence[Mark]
    given: Sequence[Mark]
    gates: Sequence[tuple[str, float, float]]
    answers: Sequence[tuple[str, str, bool, float | None]]
    mark_size: float

    @property
    def right(self) -> bool:
        """Whether the routed answer passes."""
        answer = self.result.answers["top1"]
        return answer is not None and answer.right


def examples(results: Sequence[CaseResult], experts: Sequence[str]) -> list[Example]:
    """For each expert the first case that `top1` fails, and the first that it passes."""
    return [_example(each) for name in experts for each in _first_two(results, name)]


def _first_two(results: Sequence[CaseResult], expert: str) -> list[CaseResult]:
    first: dict[bool, CaseResult] = {}
    for result in results:
        if result.case.expert == expert:
            answer = result.answers["top1"]
            first.setdefault(answer is not None and answer.right, result)
    return [first[right] for right in (False, True) if right in first]


def _example(result: CaseResult) -> Example:
    case, soft, routed = result.case, result.decisions["soft"], result.answers["top1"]
    weights = soft.gates if soft else {}
    probabilities = soft.probabilities if soft else {}
    ranked = sorted(probabilities.items(), key=lambda item: -item[1])
    return Example(
        result=result,
        image=data_url(case.screen),
        expected=marks(case, case.expected),
        given=marks(case, routed.calls if routed else ()),
        gates=[(name, weights.get(name, 0.0), probability) for name, probability in ranked],
        answers=[_said(mode, result.answers[mode]) for mode in SHOWN_MODES],
        mark_size=mark_size(case),
    )


def _said(mode: str, answer: Answer | None) -> tuple[str, str, bool, float | None]:
    if answer is None:
        return mode, "(the router abstained)", False, None
    return mode, answer_text(answer), answer.right, answer.loss
