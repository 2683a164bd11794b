"""The nouns of an evaluation: a case, how it was decided, what was answered.

Knows neither services nor how anything is counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from training.data.calls import ToolCall
from training.scoring import is_vacuous

ROUTED_MODES = ("top1", "top2", "soft")
MODES = ("oracle", *ROUTED_MODES, "uniform", "random", "base")
"""What a case is answered under: its own expert, what the router says, and three baselines."""


@dataclass(frozen=True)
class Case:
    """One labelled instruction on one screen.

    Attributes:
        system: System prompt that the record carries; None for the expert's own.
        target: The text that the expert was to learn.
        screen: The image file.
        width: Of the screen, in pixels.
        height: Of the screen, in pixels.
        expert: Whose task it is.
        source: Where the record comes from.
        expected: The calls that answer it.
        tolerance: (x, y) in thousandths; None for the scoring's default.
    """

    id: str
    prompt: str
    system: str | None
    target: str
    screen: Path
    width: int
    height: int
    expert: str
    task_type: str
    source: str
    expected: tuple[ToolCall, ...]
    tolerance: tuple[float, float] | None

    @property
    def vacuous(self) -> bool:
        """Whether its tolerance accepts half of the screen, so that passing says nothing."""
        return is_vacuous(self.expected, self.tolerance)


@dataclass(frozen=True)
class Answer:
    """One generated answer.

    Attributes:
        calls: Empty where the text cannot be read.
        right: Whether every expected call is matched.
        cut: Whether it was as long as an answer may be, and ended there.
        loss: Mean negative log-likelihood of the case's target under the same gates, nats a token.
    """

    text: str
    calls: tuple[ToolCall, ...]
    right: bool
    cut: bool
    loss: float


@dataclass(frozen=True)
class Decision:
    """What the router said; `gates` is empty where the base alone is to answer.

    Attributes:
        probabilities: Of all the experts, at the temperature in force, before any mode.
        reason: As the contract names it.
        entropy: Of the probabilities, in nats.
    """

    gates: Mapping[str, float]
    probabilities: Mapping[str, float]
    reason: str
    entropy: float

    @property
    def expert(self) -> str | None:
        """The one with the heaviest gate; None for the base."""
        return max(self.gates, key=self.gates.__getitem__) if self.gates else None


@dataclass(frozen=True)
class CaseResult:
    """Everything that was asked about one case. None stands for a router that abstained.

    Attributes:
        decisions: By routed mode.
        answers: By mode.
        by_expert: Of each expert alone.
        second: Who is chosen while whom `top1` chose is masked.
        other_screen: Whose case the other screen of the control is.
        with_other_screen: Who is chosen for the case's text with that screen.
        without_text: Who is chosen for the case's screen with a text that says nothing.
    """

    case: Case
    decisions: Mapping[str, Decision | None]
    answers: Mapping[str, Answer | None]
    by_expert: Mapping[str, Answer]
    second: str | None
    other_screen: str
    with_other_screen: str | None
    without_text: str | None

    @property
    def chosen(self) -> str | None:
        """The expert that the router chose."""
        decision = self.decisions["top1"]
        return decision.expert if decision else None

    @property
    def gate_right(self) -> bool:
        """Whether that is the case's own."""
        return self.chosen == self.case.expert
