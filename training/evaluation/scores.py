"""How often cases pass, by mode and by part of the cases, and what an expert does on others' cases.

Knows results; knows neither probabilities nor how numbers are shown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from training.evaluation.core import MODES, ROUTED_MODES, Answer, CaseResult
from training.evaluation.routing import Calibrated, calibration
from training.scoring import Rate

WRONG = "wrong_expert"
"""The mode beside `MODES`: every expert but the case's own."""


@dataclass(frozen=True)
class Score:
    """How answers under one mode did.

    Attributes:
        rate: Those that passed; None without any.
        loss: Mean of the targets' negative log-likelihoods, nats a token; None likewise.
    """

    rate: Rate | None
    loss: float | None


@dataclass(frozen=True)
class Part:
    """The numbers over some of the cases.

    Attributes:
        cases: All of them.
        vacuous: Those whose tolerance accepts half of the screen: only `gate` counts them.
        cut: Answers of their own experts that were cut off at the longest length.
        gate: Cases whose own expert was chosen.
        scores: By mode, and for `WRONG`.
        calibrated: How far the router's confidence can be trusted; None if it always abstained.
    """

    cases: int
    vacuous: int
    cut: int
    gate: Rate
    scores: Mapping[str, Score]
    calibrated: Calibrated | None

    @property
    def of_oracle(self) -> dict[str, float | None]:
        """The headline: each routed mode's rate over that of the own experts."""
        oracle = self.scores["oracle"].rate
        return {
            mode: score.value / oracle.value if score and oracle and oracle.passed else None
            for mode, score in ((mode, self.scores[mode].rate) for mode in ROUTED_MODES)
        }


def measure(results: Sequence[CaseResult]) -> Part:
    """Counts.

    Args:
        results: At least one.
    """
    real = without_vacuous(results)
    scores = {mode: _score(result.answers[mode] for result in real) for mode in MODES}
    scores[WRONG] = _score(
        answer
        for result in real
        for name, answer in result.by_expert.items()
        if name != result.case.expert
    )
    scores[WRONG] = _of_cases(scores[WRONG], len(real))
    return Part(
        cases=len(results),
        vacuous=len(results) - len(real),
        cut=sum(result.by_expert[result.case.expert].cut for result in results),
        gate=Rate(sum(result.gate_right for result in results), len(results)),
        scores=scores,
        calibrated=calibration(results),
    )


def without_vacuous(results: Iterable[CaseResult]) -> list[CaseResult]:
    """The results that a headline may count."""
    return [result for result in results if not result.case.vacuous]


def grouped(
    results: Iterable[CaseResult], key: Callable[[CaseResult], str]
) -> dict[str, list[CaseResult]]:
    """The results of each group, in the order of the groups' names.

    Args:
        results: All of them.
        key: Names a result's group.
    """
    groups: dict[str, list[CaseResult]] = defaultdict(list)
    for result in results:
        groups[key(result)].append(result)
    return {name: groups[name] for name in sorted(groups)}


def by(results: Iterable[CaseResult], key: Callable[[CaseResult], str]) -> dict[str, Part]:
    """The numbers of each group, see `grouped`."""
    return {name: measure(group) for name, group in grouped(results, key).items()}


def crossed(
    results: Iterable[CaseResult], experts: Sequence[str]
) -> dict[str, dict[str, Rate | None]]:
    """Whose cases each expert passes: case's expert to answering expert to its rate."""
    real = without_vacuous(results)
    table: dict[str, dict[str, Rate | None]] = {}
    for own in experts:
        mine = [result for result in real if result.case.expert == own]
        table[own] = {
            name: rate(result.by_expert[name].right for result in mine) for name in experts
        }
    return table


def rate(passed: Iterable[bool]) -> Rate | None:
    """The share that passed; None of nothing."""
    values = list(passed)
    return Rate(sum(values), len(values)) if values else None


def _of_cases(score: Score, cases: int) -> Score:
    """A score of several answers a case, whose interval counts cases."""
    if score.rate is None:
        return score
    together = score.rate.n // cases
    return replace(score, rate=replace(score.rate, together=together))


def _score(answers: Iterable[Answer | None]) -> Score:
    """Where the router abstained there is no answer: it did not pass, and has no loss."""
    given = list(answers)
    losses = [answer.loss for answer in given if answer]
    return Score(
        rate(answer is not None and answer.right for answer in given),
        sum(losses) / len(losses) if losses else None,
    )
