"""How well the router decides: its choices, its confidence, and what it decides by.

Knows decisions and labels; knows no answer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from training.calibration import Bin, expected_calibration_error, reliability_bins
from training.evaluation.core import CaseResult, Decision
from training.scoring import Rate
from training.thresholds import RiskPoint, risk_coverage

NOBODY = "(none)"
"""Stands for the expert where the router abstained or left the case to the base."""


@dataclass(frozen=True)
class Calibrated:
    """Confidence against accuracy, at the temperature in force.

    Attributes:
        ece: Expected calibration error.
        bins: What it is the mean of.
        entropy: Mean, in nats.
    """

    ece: float
    bins: tuple[Bin, ...]
    entropy: float


@dataclass(frozen=True)
class Control:
    """What is decided where one input says nothing, or something else.

    Attributes:
        own: Cases that went to their own expert all the same.
        other: Cases that went to the expert whose screen they were given; None where none was.
    """

    own: Rate
    other: Rate | None


@dataclass(frozen=True)
class Routing:
    """The router's decisions over all cases.

    Attributes:
        abstained: Cases that it left undecided.
        reasons: The contract's reason to its cases.
        confusion: Own expert to chosen one to cases; `NOBODY` is a choice too.
        f1: Of each expert.
        macro_f1: Their mean.
        labels: Share of the cases that each expert has.
        probabilities: Mean probability of each.
        gates: Mode to the mean gate of each; cases without gates count as zeros.
        entropies: Of each decided case, in nats.
        own_gates: Of each case's own expert in soft mode.
        curve: Risk by coverage, on one case an image because bounds count independent ones.
        shuffled: Screens shuffled: text and screen say different things.
        blanked: Text blanked: the screen alone.
        size_alone: Cases of the expert that has most of those with a screen of that size: what a
            router could reach that sees nothing else.
    """

    abstained: int
    reasons: Mapping[str, int]
    confusion: Mapping[str, Mapping[str, int]]
    f1: Mapping[str, float]
    macro_f1: float
    labels: Mapping[str, float]
    probabilities: Mapping[str, float]
    gates: Mapping[str, Mapping[str, float]]
    entropies: tuple[float, ...]
    own_gates: tuple[float, ...]
    curve: tuple[RiskPoint, ...]
    shuffled: Control
    blanked: Control
    size_alone: Rate


def routing(results: Sequence[CaseResult], experts: Sequence[str]) -> Routing:
    """Counts decisions.

    Args:
        results: At least one.
        experts: That the router knows.
    """
    confusion = {name: dict.fromkeys((*experts, NOBODY), 0) for name in experts}
    for result in results:
        confusion[result.case.expert][result.chosen or NOBODY] += 1
    f1 = {name: _f1(confusion, name) for name in experts if any(confusion[name].values())}
    soft = [result.decisions["soft"] for result in results]
    decided = [decision for decision in soft if decision]
    labels = Counter(result.case.expert for result in results)
    return Routing(
        abstained=len(soft) - len(decided),
        reasons=Counter(decision.reason for decision in decided),
        confusion=confusion,
        f1=f1,
        macro_f1=sum(f1.values()) / len(f1),
        labels={name: labels[name] / len(results) for name in experts},
        probabilities=_means([each.probabilities for each in decided], experts),
        gates={mode: _means(_gates(results, mode), experts) for mode in results[0].decisions},
        entropies=tuple(decision.entropy for decision in decided),
        own_gates=tuple(
            gates.get(result.case.expert, 0.0)
            for result, gates in zip(results, _gates(results, "soft"), strict=True)
        ),
        curve=_curve(results),
        shuffled=_shuffled(results),
        blanked=Control(_rate([r.without_text == r.case.expert for r in results]), None),
        size_alone=_size_alone(results),
    )


def calibration(results: Sequence[CaseResult]) -> Calibrated | None:
    """Confidence against accuracy; None where the router decided nothing."""
    decided = _decided(results)
    if not decided:
        return None
    names = list(decided[0][1].probabilities)
    rows = [[decision.probabilities[name] for name in names] for _, decision in decided]
    # The softmax of logarithms gives the probabilities back.
    logits = torch.tensor(rows, dtype=torch.float64).log()
    labels = torch.tensor([names.index(result.case.expert) for result, _ in decided])
    return Calibrated(
        ece=expected_calibration_error(logits, labels, 1.0),
        bins=reliability_bins(logits, labels, 1.0),
        entropy=float(np.mean([decision.entropy for _, decision in decided])),
    )


def _decided(results: Sequence[CaseResult]) -> list[tuple[CaseResult, Decision]]:
    return [(each, found) for each in results if (found := each.decisions["soft"])]


def _gates(results: Sequence[CaseResult], mode: str) -> list[Mapping[str, float]]:
    return [found.gates if (found := each.decisions[mode]) else {} for each in results]


def _means(rows: Sequence[Mapping[str, float]], experts: Sequence[str]) -> dict[str, float]:
    return {name: sum(row.get(name, 0.0) for row in rows) / max(len(rows), 1) for name in experts}


def _f1(confusion: Mapping[str, Mapping[str, int]], name: str) -> float:
    """Harmonic mean of precision and recall; 0 for an expert that is never chosen rightly."""
    right = confusion[name][name]
    chosen = sum(row[name] for row in confusion.values())
    return 2 * right / (chosen + sum(confusion[name].values()))


def _curve(results: Sequence[CaseResult]) -> tuple[RiskPoint, ...]:
    one_an_image = {result.case.screen: (result, found) for result, found in _decided(results)}
    if not one_an_image:
        return ()
    pairs = list(one_an_image.values())
    scores = np.array([max(found.probabilities.values()) for _, found in pairs])
    wrong = np.array([not result.gate_right for result, _ in pairs])
    return risk_coverage(scores, wrong)


def _shuffled(results: Sequence[CaseResult]) -> Control:
    # A screen of the own expert, where nobody else had one, says what the text says.
    given = [each for each in results if each.other_screen != each.case.expert]
    return Control(
        _rate([each.with_other_screen == each.case.expert for each in given or results]),
        _rate([each.with_other_screen == each.other_screen for each in given]) if given else None,
    )


def _size_alone(results: Sequence[CaseResult]) -> Rate:
    sizes: dict[tuple[int, int], Counter[str]] = defaultdict(Counter)
    for each in results:
        sizes[each.case.width, each.case.height][each.case.expert] += 1
    return Rate(sum(max(counts.values()) for counts in sizes.values()), len(results))


def _rate(passed: Sequence[bool]) -> Rate:
    return Rate(sum(passed), len(passed))
