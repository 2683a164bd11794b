"""Operating points: where a score is high enough to act on, with a bound on being wrong.

Knows scores and mistakes on held-out cases; knows neither router nor agent. Cases must be drawn
independently, which is why callers take one an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
# Shares of the cases, surest first, that are tried as operating points.
CANDIDATES = tuple(tenth / 10 for tenth in range(10, 0, -1))
_CURVE_POINTS = 60

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold, and what was seen at or above it.

    Attributes:
        threshold: The least score that is acted on.
        cases: That reach it.
        of: All cases.
        mistakes: Among those that reach it.
        bound: Upper bound on their risk, at the confidence that was asked for.
    """

    threshold: float
    cases: int
    of: int
    mistakes: int
    bound: float


@dataclass(frozen=True)
class RiskPoint:
    """One point of a risk-coverage curve.

    Attributes:
        coverage: Share of the cases with a score at least `threshold`.
        risk: Share of those that are wrong.
        bound: Upper bound on the risk, for this point alone.
    """

    threshold: float
    coverage: float
    risk: float
    bound: float


def check_share(what: str, share: float) -> None:
    """Refuses a share that is none of something, or all of it.

    Args:
        what: Names it.
        share: To be in (0, 1).

    Raises:
        ValueError: It is not.
    """
    if not 0 < share < 1:
        raise ValueError(f"a {what} of {share:g} is out of range: give one in (0, 1)")


def clopper_pearson_upper(mistakes: int, cases: int, confidence: float = CONFIDENCE) -> float:
    """Upper end of the exact one-sided interval of a rate (Clopper and Pearson 1934).

    Args:
        mistakes: 0 to `cases`.
        cases: Independent ones; 0 says nothing.
        confidence: In (0, 1).

    Returns:
        The rate at which so few mistakes, or fewer, have probability 1 - confidence.
    """
    if mistakes >= cases:
        return 1.0
    # log C(n, i) for i = 0 … k
    fewer = np.arange(1, mistakes + 1)
    chosen = np.concatenate([[0.0], np.cumsum(np.log((cases - fewer + 1) / fewer))])
    counts = np.arange(mistakes + 1)

    def log_probability(rate: float) -> float:
        terms = chosen + counts * math.log(rate) + (cases - counts) * math.log1p(-rate)
        return float(np.logaddexp.reduce(terms))

    return _falls_to(log_probability, math.log(1 - confidence))


def safe_threshold(
    scores: Floats, wrong: Flags, max_risk: float, confidence: float = CONFIDENCE
) -> OperatingPoint | None:
    """The operating point that acts on most cases while its risk is bounded.

    The surest 100 %, 90 %, … 10 % of the cases are tried, each at a tenth of the error probability
    (Bonferroni), so that with the confidence asked for, none that passes has a higher risk. This is
    selection with guaranteed risk (Geifman and El-Yaniv 2017), over a grid instead of a search:
    theirs gives up on all cases where half of them are too few to tell.

    Args:
        scores: [n], higher is surer.
        wrong: [n], whether acting on the case would have been a mistake.
        max_risk: In (0, 1).
        confidence: Of the bound.

    Returns:
        None if no candidate passes.
    """
    order = np.argsort(-scores, kind="stable")
    each = 1 - (1 - confidence) / len(CANDIDATES)
    for share in CANDIDATES:
        if (point := _point(scores, wrong, order, share, each)) and point.bound <= max_risk:
            return point
    return None


def least_cases(max_risk: float, confidence: float = CONFIDENCE) -> int:
    """How many cases without a single mistake `safe_threshold` needs at the least."""
    return math.ceil(math.log((1 - confidence) / len(CANDIDATES)) / math.log1p(-max_risk))


def risk_coverage(
    scores: Floats, wrong: Flags, confidence: float = CONFIDENCE
) -> tuple[RiskPoint, ...]:
    """The risk of acting on the surest cases alone, from few of them to all.

    Args:
        scores: [n], higher is surer; n at least 1.
        wrong: [n].
        confidence: Of each point's bound.
    """
    order = np.argsort(-scores, kind="stable")
    shares = np.linspace(0, 1, _CURVE_POINTS + 1)[1:].tolist()
    points = [_point(scores, wrong, order, share, confidence) for share in shares]
    distinct = {point.cases: point for point in points if point is not None}
    return tuple(
        RiskPoint(point.threshold, cases / len(scores), point.mistakes / cases, point.bound)
        for cases, point in sorted(distinct.items())
    )


def conformal_limit(values: Floats, share: float) -> float | None:
    """A limit that at most `share` of further values exceed, whatever their distribution.

    Split conformal prediction (Vovk et al. 2005): the ceil((n + 1)(1 - share))-th smallest of n
    values; a further one that is exchangeable with them exceeds it with probability `share` at
    most.

    Args:
        values: [n].
        share: In (0, 1).

    Returns:
        None if n is too small for such a small share.
    """
    rank = math.ceil((len(values) + 1) * (1 - share))
    return float(np.sort(values)[rank - 1]) if rank <= len(values) else None


def _point(
    scores: Floats, wrong: Flags, order: npt.NDArray[np.intp], share: float, confidence: float
) -> OperatingPoint | None:
    """The surest share of the cases, and all that are as sure as the last of them."""
    last = math.ceil(share * len(scores)) - 1
    if last < 0:
        return None
    threshold = float(scores[order[last]])
    reached = scores >= threshold
    cases, mistakes = int(reached.sum()), int((wrong & reached).sum())
    bound = clopper_pearson_upper(mistakes, cases, confidence)
    return OperatingPoint(threshold, cases, len(scores), mistakes, bound)


def _falls_to(function: Callable[[float], float], level: float) -> float:
    """Where a falling function over (0, 1) reaches a level, to 1e-9."""
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > level else (low, middle)
    return high
