"""What it costs to take experts away without training again: masked one by one, then down to one.

Knows results; asks nobody. Who answers when the chosen expert is masked was asked of the router;
who comes after that follows from the probabilities, because masking comes before the mode.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from training.evaluation.core import CaseResult
from training.evaluation.scores import rate, without_vacuous
from training.scoring import Rate


@dataclass(frozen=True)
class Removal:
    """The rates of `top1` with one expert masked; None without such cases.

    Attributes:
        expert: That is masked.
        everyone: Over all the cases.
        own: Over the cases of the masked expert.
        others: Over all others.
        cost: What masking takes off the rate over all cases, in [-1, 1].
    """

    expert: str
    everyone: Rate | None
    own: Rate | None
    others: Rate | None
    cost: float


@dataclass(frozen=True)
class Pruned:
    """How good `top1` is with fewer experts.

    Attributes:
        left: Experts that are left.
        removed: Whom this step removed; None in the first.
        rate: Over all the cases.
    """

    left: int
    removed: str | None
    rate: Rate | None


def removals(results: Sequence[CaseResult], experts: Sequence[str]) -> tuple[Removal, ...]:
    """Masks each expert in turn; empty for a single one."""
    real = without_vacuous(results)
    if len(experts) < 2 or not real:
        return ()
    whole = _passed(real, ())
    found = []
    for name in experts:
        masked = [(each.case.expert == name, _passes(each, (name,))) for each in real]
        everyone = rate(passed for _, passed in masked)
        found.append(
            Removal(
                expert=name,
                everyone=everyone,
                own=rate(passed for own, passed in masked if own),
                others=rate(passed for own, passed in masked if not own),
                cost=(whole - sum(passed for _, passed in masked)) / len(real),
            )
        )
    return tuple(found)


def pruning(results: Sequence[CaseResult], experts: Sequence[str]) -> tuple[Pruned, ...]:
    """Removes the expert that costs least, again and again, until one is left.

    Returns:
        All the experts first, one at last.
    """
    real = without_vacuous(results)
    left, removed = list(experts), list[str]()
    steps = [Pruned(len(left), None, rate(_passes(each, ()) for each in real))]
    while len(left) > 1:
        cheapest = max(left, key=lambda name: _passed(real, (*removed, name)))
        left.remove(cheapest)
        removed.append(cheapest)
        passed = [_passes(each, removed) for each in real]
        steps.append(Pruned(len(left), cheapest, rate(passed)))
    return tuple(steps)


def _passed(results: Sequence[CaseResult], removed: Collection[str]) -> int:
    return sum(_passes(result, removed) for result in results)


def _passes(result: CaseResult, removed: Collection[str]) -> bool:
    answering = _answering(result, removed)
    return answering is not None and result.by_expert[answering].right


def _answering(result: CaseResult, removed: Collection[str]) -> str | None:
    """Who answers; None where the router abstains, which it does whatever is masked."""
    chosen = result.chosen
    if chosen not in removed:
        return chosen
    if result.second not in removed:
        return result.second
    decision = result.decisions["top1"]
    assert decision is not None
    left = {name: p for name, p in decision.probabilities.items() if name not in removed}
    return max(left, key=left.__getitem__) if left else None
