"""Whether a router tells screens that its experts know from those that none does.

Knows distances and whose screens they are of; knows neither logits nor agents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from router_service.bundle import Bundle
from training.agents import Floats
from training.charts import Axis, Line, chart
from training.held_out import Cases
from training.known_screens import read_known_screens
from training.scoring import Rate
from training.thresholds import Flags, conformal_limit

_CURVE_POINTS = 80
_FARTHEST = 4.0


@dataclass(frozen=True)
class Refusals:
    """Which screens a bundle abstains from.

    Attributes:
        threshold: From this distance on.
        known: Screens of the experts.
        by_expert: The same, of each expert that has a case.
        unknown: Of pictures that no expert knows, by their source.
        left_out: What if an expert had never been one: those of its screens that the others'
            abstention, fitted to the others' screens alone, would refuse.
        known_curve: Share of the known screens that are farther, by distance.
        unknown_curve: The same of all the unknown pictures; empty where there are none.
    """

    threshold: float
    known: Rate
    by_expert: Mapping[str, Rate]
    unknown: Mapping[str, Rate]
    left_out: Mapping[str, Rate]
    known_curve: tuple[tuple[float, float], ...]
    unknown_curve: tuple[tuple[float, float], ...]


def refusals(bundle: Bundle, cases: Cases, unknown: Mapping[str, Floats]) -> Refusals | None:
    """Measure a bundle's abstention.

    Args:
        bundle: Fitted or not.
        cases: Held-out ones of its experts.
        unknown: Source to the distances of its pictures, see `held_out.read_unknown`.

    Returns:
        None where it abstains from nothing.
    """
    rule, distance = bundle.manifest.abstention, cases.distance
    if rule is None or rule.threshold is None or distance is None:
        return None
    names = [expert.name for expert in bundle.manifest.experts]
    refused = distance > rule.threshold
    own = {name: refused[cases.labels == number] for number, name in enumerate(names)}
    strange = np.concatenate([*unknown.values(), np.zeros(0)])
    return Refusals(
        threshold=rule.threshold,
        known=_rate(refused),
        by_expert={name: _rate(flags) for name, flags in own.items() if len(flags)},
        unknown={source: _rate(found > rule.threshold) for source, found in unknown.items()},
        left_out=_left_out(bundle, cases, names),
        known_curve=_curve(distance, rule.threshold),
        unknown_curve=_curve(strange, rule.threshold),
    )


def refusal_chart(found: Refusals) -> str:
    """Known and unknown screens by distance, and where the bundle draws the line."""
    lines = [
        Line("abstained from", "wanted", [(found.threshold, 0.0), (found.threshold, 1.0)]),
        Line("unknown", "bound", found.unknown_curve),
        Line("known", "found", found.known_curve),
    ]
    x = Axis("distance from the nearest expert's screens", 0.0, found.known_curve[-1][0])
    return chart(lines, x, Axis("share that is farther", 0.0, 1.0), falling=True)


def _left_out(bundle: Bundle, cases: Cases, names: list[str]) -> dict[str, Rate]:
    fit, known = bundle.manifest.fit, read_known_screens(bundle.head)
    if fit is None or known is None or len(names) < 2:
        return {}
    found, vision = {}, torch.from_numpy(cases.vision)
    for number, name in enumerate(names):
        own = cases.labels == number
        with torch.inference_mode():
            distance = known.without(number)(vision).double().numpy()
        limit = conformal_limit(distance[~own], fit.max_refused)
        if limit is not None and own.any():
            found[name] = _rate(distance[own] > limit)
    return found


def _curve(distance: Floats, threshold: float) -> tuple[tuple[float, float], ...]:
    if not len(distance):
        return ()
    places = np.linspace(0, math.ceil(_FARTHEST * threshold), _CURVE_POINTS + 1).tolist()
    return tuple((place, float((distance > place).mean())) for place in places)


def _rate(flags: Flags) -> Rate:
    return Rate(int(flags.sum()), len(flags))
