"""Which cases a report shows, and what it needs to draw them. Knows results; counts nothing."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from molora_client import to_pixels
from training.data.calls import ToolCall
from training.demo.report import Mark, call_text
from training.evaluation.core import Answer, Case, CaseResult
from training.scoring import default_tolerance

SHOWN_MODES = ("top1", "soft", "oracle", "uniform", "base")
_MIME = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


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
        image=_data_address(case.screen),
        expected=_marks(case, case.expected),
        given=_marks(case, routed.calls if routed else ()),
        gates=[(name, weights.get(name, 0.0), probability) for name, probability in ranked],
        answers=[_said(mode, result.answers[mode]) for mode in SHOWN_MODES],
        mark_size=max(case.width, case.height) / 36,
    )


def _said(mode: str, answer: Answer | None) -> tuple[str, str, bool, float | None]:
    if answer is None:
        return mode, "(the router abstained)", False, None
    calls = "; ".join(call_text(call) for call in answer.calls)
    return mode, calls or answer.text.strip() or "(nothing)", answer.right, answer.loss


def _marks(case: Case, calls: Sequence[ToolCall]) -> list[Mark]:
    """The calls that point at a place inside the screen."""
    marks = []
    for call in calls:
        try:
            pair = tuple(call.arguments["coordinate"])
            x, y = to_pixels(pair, width=case.width, height=case.height)
        except (KeyError, TypeError, ValueError):
            continue
        radius_x, radius_y = case.tolerance or default_tolerance(call)
        marks.append(Mark(x, y, radius_x * case.width / 1000, radius_y * case.height / 1000))
    return marks


def _data_address(path: Path) -> str:
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"data:{_MIME.get(path.suffix.lower(), 'image/png')};base64,{content}"
