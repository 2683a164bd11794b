"""The bars that a miniature has to reach, held against what its evaluations state.

Knows the JSON of evaluations and the numbers to reach; runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from training.evaluation.scores import WRONG
from training.scoring import wilson_interval

Stated = Mapping[str, Any]
"""What `molora evaluate --json` states."""

RATES = ("gate", "oracle", "top1", "top2", "soft", "uniform", "random", "base", WRONG)


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        name: What has to be reached.
        found: The number that is held against it.
        sign: How it has to compare with `needed`: ≥, < or ≤.
        needed: The number to reach, or to stay below.
        met: Whether it is.
        why: The numbers behind it.
    """

    name: str
    found: float
    sign: str
    needed: float
    met: bool
    why: str


def mean_rates(evaluations: Sequence[Stated]) -> dict[str, dict[str, Any]]:
    """Every rate over the seeds: mean, values, and an interval.

    The cases are the same for every seed, so the interval is that of one set of cases at the mean;
    what several wrong experts say of one case counts as one.

    Args:
        evaluations: One a seed, of the same cases.
    """
    rates = {}
    for name in RATES:
        key = f"{name}_accuracy"
        found = [each[key] for each in evaluations]
        if None in found:
            continue
        n = evaluations[0]["counts"][key][1]
        mean = fmean(found)
        # Every case was answered by all the others.
        together = max(1, len(evaluations[0]["experts"]) - 1) if name == WRONG else 1
        rates[name] = {
            "mean": mean,
            "values": found,
            "n": n,
            "wilson_95": list(wilson_interval(round(mean * n) / together, n / together)),
        }
    return rates


def own_expert(evaluation: Stated) -> float:
    """Mean over the experts of how often each is right on its own cases."""
    return fmean(part["oracle_accuracy"] for part in evaluation["experts"].values())


def bars(
    first: Sequence[Stated],
    second: Sequence[Stated],
    fresh: Sequence[Stated],
    second_fresh: Sequence[Stated],
) -> tuple[Bar, ...]:
    """All bars.

    Args:
        first: Evaluations of stage 1's heads on held-out cases, one a seed.
        second: Those of stage 2's heads, on the same cases.
        fresh: Those of stage 1's heads on cases in fresh themes and sizes.
        second_fresh: Those of stage 2's heads, on the same cases.
    """
    one, two, new = mean_rates(first), mean_rates(second), mean_rates(fresh)
    later = mean_rates(second_fresh)["gate"]
    oracle = one["oracle"]["mean"]
    return (
        _least("gate accuracy, held-out", one["gate"], 0.99),
        _least("gate accuracy, fresh themes and sizes", new["gate"], 0.95),
        *_controls("held-out", first, one["gate"]["mean"]),
        *_controls("fresh themes and sizes", fresh, new["gate"]["mean"]),
        _above("own expert, mean over experts", own_expert(first[0]), 0.90, _said(one["oracle"])),
        _of_own_expert("top-1", one["top1"], oracle, 0.99),
        _of_own_expert("soft", one["soft"], oracle, 0.97),
        _least("stage 2, top-1, not below stage 1", two["top1"], one["top1"]["mean"]),
        _least("stage 2, soft, not below stage 1", two["soft"], one["soft"]["mean"]),
        _least("stage 2, gate, not below stage 1", two["gate"], one["gate"]["mean"]),
        _least("stage 2, gate on fresh, not below stage 1", later, new["gate"]["mean"]),
        _clearly_below("uniform clearly below top-1 and soft", one),
        _below("wrong expert", one["wrong_expert"]["mean"], 0.30, _said(one["wrong_expert"])),
    )


def _controls(cases: str, evaluations: Sequence[Stated], gate: float) -> list[Bar]:
    """With one input taken away accuracy falls: the head uses both."""
    shown = {"screens_shuffled": "screens shuffled", "text_blanked": "text blanked"}
    found = []
    for key, label in shown.items():
        rates = [each["controls"][key]["accuracy"] for each in evaluations]
        mean = fmean(rate["value"] for rate in rates)
        why = ", ".join(f"{rate['value']:.3f}" for rate in rates) + f" of {rates[0]['n']}"
        found.append(
            Bar(f"gate accuracy falls with {label}, {cases}", mean, "<", gate, mean < gate, why)
        )
    return found


def _clearly_below(name: str, rates: Mapping[str, Mapping[str, Any]]) -> Bar:
    """The intervals of uniform gates and of the lower of the two do not meet."""
    lower = min((rates["top1"], rates["soft"]), key=lambda rate: rate["mean"])
    uniform = rates["uniform"]
    met = uniform["wilson_95"][1] < lower["wilson_95"][0]
    return Bar(name, uniform["mean"], "<", lower["wilson_95"][0], met, _said(uniform))


def _least(name: str, rate: Mapping[str, Any], needed: float) -> Bar:
    return _above(name, rate["mean"], needed, _said(rate))


def _above(name: str, found: float, needed: float, why: str) -> Bar:
    # Means of the same counts in another order may differ in their last bit.
    return Bar(name, found, "≥", needed, found >= needed - 1e-12, why)


def _below(name: str, found: float, needed: float, why: str) -> Bar:
    return Bar(name, found, "≤", needed, found <= needed, why)


def _of_own_expert(mode: str, rate: Mapping[str, Any], oracle: float, needed: float) -> Bar:
    share = rate["mean"] / oracle if oracle else 0.0
    return _above(f"{mode} / own expert", share, needed, f"{mode}: {_said(rate)}")


def _said(rate: Mapping[str, Any]) -> str:
    low, high = rate["wilson_95"]
    values = ", ".join(f"{value:.3f}" for value in rate["values"])
    return f"{values}; n = {rate['n']}, 95 % of the mean {low:.3f} to {high:.3f}"
