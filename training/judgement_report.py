"""How good a router's judgement is, in numbers and as a page with plots.

Knows cases and the served policy; fits nothing to a bundle.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from router_service.bundle import Bundle
from router_service.core import HeadOutput, Hint, Options, Reason
from router_service.manifest import AbstentionRule, AgentModel, Fit, Manifest, Thresholds
from router_service.policy import Policy, PolicyConfig
from router_service.weights import entropy
from training.agents import Floats, Hints, simulate
from training.calibration import Bin, expected_calibration_error, log_loss, reliability_bins
from training.charts import Axis, Line, chart
from training.held_out import Cases
from training.judgement import fit_agent, fit_thresholds
from training.pages import render
from training.refusals import Refusals, refusal_chart, refusals
from training.scoring import Rate
from training.stated import plain
from training.thresholds import (
    OperatingPoint,
    RiskPoint,
    check_share,
    risk_coverage,
    safe_threshold,
)

RELIABILITIES = (0.6, 0.8, 0.95)
TEMPLATE = Path(__file__).parent / "judgement.html.j2"


@dataclass(frozen=True)
class Together:
    """A simulated agent and the router, apart and together, on the cases to prove on.

    Attributes:
        reliability: How often the agent is right, by construction.
        confident: Whether its hints say how sure it is.
        agent: The agent alone.
        router: The router alone.
        together: The expert with the heaviest gate.
        model: What was found out about the agent on the other cases.
        thresholds: Name to value for this agent, None where none was shown to be safe.
        reasons: Rule to the decisions that it made.
    """

    reliability: float
    confident: bool
    agent: Rate
    router: Rate
    together: Rate
    model: AgentModel
    thresholds: dict[str, float | None]
    reasons: dict[str, int]

    @property
    def loss(self) -> float:
        """How far the better of the two is above the combination's interval; 0 if it is not."""
        better = max(self.agent.value, self.router.value)
        return max(0.0, better - self.together.interval[1])


@dataclass(frozen=True)
class Judgement:
    """What was measured on held-out cases, one an image.

    Attributes:
        source: Where the cases come from.
        cases: Those that were measured on.
        accuracy: Of the most probable expert.
        log_loss: In nats, at temperature 1 and at the bundle's.
        ece: Expected calibration error, at temperature 1 and at the bundle's.
        bins: Accuracy against confidence, at temperature 1 and at the bundle's.
        marginals: Expert to its mean probability.
        entropy: Mean, in nats.
        curve: Risk of the router alone, by coverage.
        point: Where the router alone has a risk of at most `max_risk`; None: nowhere.
        refusals: Screens that the bundle abstains from; None: it abstains from none.
        thresholds: The bundle's.
        agent: The bundle's.
        abstention: The bundle's.
        fit: What these were fitted to; None: they are typed.
        agents: Simulated ones.
    """

    router_version: str
    dataset_digest: str
    source: str
    cases: int
    max_risk: float
    temperature: float
    accuracy: Rate
    log_loss: tuple[float, float]
    ece: tuple[float, float]
    bins: tuple[tuple[Bin, ...], tuple[Bin, ...]]
    marginals: dict[str, float]
    entropy: float
    curve: tuple[RiskPoint, ...]
    point: OperatingPoint | None
    refusals: Refusals | None
    thresholds: Thresholds
    agent: AgentModel | None
    abstention: AbstentionRule | None
    fit: Fit | None
    agents: tuple[Together, ...]

    @property
    def is_of_the_fit(self) -> bool:
        """Whether it was measured on the records that the bundle's thresholds are fitted to."""
        return self.fit is not None and self.fit.dataset_digest == self.dataset_digest

    def to_json(self) -> dict[str, Any]:
        """The content of `judgement.json`."""
        agents = [{**plain(each), "loss": each.loss} for each in self.agents]
        return {**plain(self), "is_of_the_fit": self.is_of_the_fit, "agents": agents}


def judge(
    bundle: Bundle,
    cases: Cases,
    max_risk: float,
    seed: int = 0,
    unknown: Mapping[str, Floats] = MappingProxyType({}),
) -> Judgement:
    """Measure a bundle on held-out cases.

    Args:
        bundle: Fitted or not.
        cases: From `read_cases`. The part that agents are fitted to is not measured on.
        max_risk: For the operating points.
        seed: Of the simulated agents.
        unknown: From `read_unknown`.

    Raises:
        ValueError: There are too few cases to divide, or `max_risk` is not in (0, 1).
    """
    check_share("risk", max_risk)
    manifest, (_, proof) = bundle.manifest, cases.divided()
    temperature = manifest.temperature.value
    posterior = proof.posterior(temperature)
    wrong = posterior.argmax(axis=1) != proof.labels
    logits, labels = torch.from_numpy(proof.logits), torch.from_numpy(proof.labels)
    means = posterior.mean(axis=0).tolist()
    return Judgement(
        router_version=bundle.version,
        dataset_digest=cases.dataset_digest,
        source=cases.source,
        cases=len(proof),
        max_risk=max_risk,
        temperature=temperature,
        accuracy=Rate(int((~wrong).sum()), len(proof)),
        log_loss=(log_loss(logits, labels, 1.0), log_loss(logits, labels, temperature)),
        ece=(
            expected_calibration_error(logits, labels, 1.0),
            expected_calibration_error(logits, labels, temperature),
        ),
        bins=(reliability_bins(logits, labels, 1.0), reliability_bins(logits, labels, temperature)),
        marginals=dict(zip((each.name for each in manifest.experts), means, strict=True)),
        entropy=float(np.mean([entropy(row) for row in posterior])),
        curve=risk_coverage(posterior.max(axis=1), wrong),
        point=safe_threshold(posterior.max(axis=1), wrong, max_risk),
        refusals=refusals(bundle, cases, unknown),
        thresholds=manifest.thresholds,
        agent=manifest.agent,
        abstention=manifest.abstention,
        fit=manifest.fit,
        agents=_agents(manifest, cases, max_risk, seed),
    )


def write_judgement(judgement: Judgement, folder: Path) -> Path:
    """Write `judgement.json` and `judgement.html`, which needs no other file.

    Returns:
        The page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stated = json.dumps(judgement.to_json(), indent=2)
    (folder / "judgement.json").write_text(f"{stated}\n", encoding="utf-8")
    page = render(
        TEMPLATE,
        judgement=judgement,
        curve=_curve_chart(judgement),
        calibration=_calibration_chart(judgement),
        refused=refusal_chart(judgement.refusals) if judgement.refusals else None,
    )
    path = folder / "judgement.html"
    path.write_text(page, encoding="utf-8")
    return path


def _agents(manifest: Manifest, cases: Cases, max_risk: float, seed: int) -> tuple[Together, ...]:
    experts = len(manifest.experts)
    if experts < 2:
        return ()
    found = []
    for number, reliability in enumerate(RELIABILITIES):
        hints = simulate(cases.labels, experts, reliability, seed + number)
        for confident in (True, False):
            said = hints if confident else hints.without_confidence()
            each = dataclasses.replace(cases, hints=said)
            found.append(_together(manifest, each, reliability, confident, max_risk))
    return tuple(found)


def _together(
    manifest: Manifest, cases: Cases, reliability: float, confident: bool, max_risk: float
) -> Together:
    tuning, proof = cases.divided()
    temperature = manifest.temperature.value
    model = fit_agent(tuning, temperature, "simulated")
    assert model is not None
    thresholds = fit_thresholds(proof, temperature, model, max_risk)
    chosen, reasons = _decide(manifest, proof, model, thresholds)
    n, labels = len(proof), proof.labels
    return Together(
        reliability=reliability,
        confident=confident,
        agent=Rate(int((proof.hints.expert == labels).sum()), n),
        router=Rate(int((proof.logits.argmax(axis=1) == labels).sum()), n),
        together=Rate(int((np.array(chosen) == labels).sum()), n),
        model=model,
        thresholds={
            field.name: getattr(thresholds, field.name).value
            for field in dataclasses.fields(thresholds)
        },
        reasons={reason.value: n for reason, n in sorted(reasons.items(), key=lambda r: -r[1])},
    )


def _decide(
    manifest: Manifest, cases: Cases, model: AgentModel, thresholds: Thresholds
) -> tuple[list[int], collections.Counter[Reason]]:
    """The expert with the heaviest gate of each case, and the rules that decided."""
    names = tuple(expert.name for expert in manifest.experts)
    policy = Policy(PolicyConfig(names, manifest.mode, manifest.temperature, thresholds, model))
    chosen, reasons = [], collections.Counter[Reason]()
    for row, hint in zip(cases.logits, _as_asked(cases.hints, names), strict=True):
        decision = policy.decide(policy.check(hint, Options()), HeadOutput(row))
        chosen.append(names.index(max(decision.gates, key=decision.gates.__getitem__)))
        reasons[decision.reason] += 1
    return chosen, reasons


def _as_asked(hints: Hints, names: tuple[str, ...]) -> list[Hint]:
    return [
        Hint(names[expert], None if math.isnan(confidence) else float(confidence))
        for expert, confidence in zip(hints.expert, hints.confidence, strict=True)
    ]


def _curve_chart(judgement: Judgement) -> str:
    points = judgement.curve
    highest = max(judgement.max_risk * 2, *(min(point.bound, 1.0) for point in points[-1:]))
    lines = [
        Line("95 % bound", "bound", [(point.coverage, point.bound) for point in points]),
        Line("risk", "found", [(point.coverage, point.risk) for point in points]),
        Line("wanted", "wanted", [(0.0, judgement.max_risk), (1.0, judgement.max_risk)]),
    ]
    return chart(lines, Axis("coverage", 0.0, 1.0), Axis("risk", 0.0, highest), falling=True)


def _calibration_chart(judgement: Judgement) -> str:
    before, after = judgement.bins
    lines = [
        Line("perfect", "wanted", [(0.0, 0.0), (1.0, 1.0)]),
        Line("temperature 1", "bound", [(b.confidence, b.accuracy) for b in before], dots=True),
        Line("as served", "found", [(b.confidence, b.accuracy) for b in after], dots=True),
    ]
    return chart(lines, Axis("confidence", 0.0, 1.0), Axis("accuracy", 0.0, 1.0))
