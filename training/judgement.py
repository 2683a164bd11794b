"""Fits what a router acts on to held-out cases: its thresholds, its agent, its abstention.

Knows bundles, features and hints; knows neither how a head was trained nor how a report looks.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from router_service.bundle import Bundle, load_bundle
from router_service.manifest import (
    AbstentionRule,
    AgentModel,
    Fit,
    Manifest,
    Threshold,
    Thresholds,
)
from training.agents import Floats, measure_agent, pool_all, simulate
from training.export import write_manifest
from training.features import load_features
from training.held_out import LEAST_CASES, Cases, read_cases
from training.shown import shown_images
from training.thresholds import (
    CONFIDENCE,
    Flags,
    check_share,
    conformal_limit,
    least_cases,
    safe_threshold,
)


def fit_bundle(
    directory: Path,
    features_dir: Path,
    *,
    max_risk: float,
    max_refused: float,
    reliability: float | None = None,
    seed: int = 0,
) -> Bundle:
    """Fit a bundle's thresholds, agent and abstention, and store them in its `router.json`.

    Args:
        directory: The bundle.
        features_dir: Features of labelled cases that the head has not learnt from: those it was
            trained on, of which the held-out split is used, or those of other images.
        max_risk: The largest share of wrong decisions that a threshold may let through.
        max_refused: The largest share of known screens that may be abstained from.
        reliability: Where no record carries an agent's hint: simulate one that is right this
            often. None: nothing is known of the agent, and its hints get no weight.
        seed: Of the choice of cases, and of the simulated agent.

    Returns:
        The bundle as it is now.

    Raises:
        BundleError: The bundle cannot be used.
        ValueError: The features are not those of the bundle.
    """
    bundle, cases = read_bundle_cases(directory, features_dir, seed)
    fitted = fit_manifest(
        bundle.manifest,
        cases,
        max_risk=max_risk,
        max_refused=max_refused,
        reliability=reliability,
        seed=seed,
    )
    write_manifest(fitted, directory)
    return load_bundle(directory)


def read_bundle_cases(directory: Path, features_dir: Path, seed: int) -> tuple[Bundle, Cases]:
    """A bundle and what its head says about held-out cases; arguments as for `fit_bundle`."""
    bundle = load_bundle(directory)
    return bundle, read_cases(bundle, shown_images(directory), load_features(features_dir), seed)


def fit_manifest(
    manifest: Manifest,
    cases: Cases,
    *,
    max_risk: float,
    max_refused: float,
    reliability: float | None,
    seed: int,
) -> Manifest:
    """The manifest with everything fitted; arguments as for `fit_bundle`.

    Raises:
        ValueError: There are too few cases to divide, or a share is not in (0, 1).
    """
    check_shares(max_risk, max_refused, reliability)
    cases, origin = with_hints(cases, reliability, seed)
    tuning, proof = cases.divided()
    agent = fit_agent(tuning, manifest.temperature.value, origin)
    if agent is not None and agent.source == "simulated":
        made_up = f"no record carries a hint: simulated, right {reliability:.0%} of the time"
        agent = dataclasses.replace(agent, why=f"{agent.why}; {made_up}")
    return dataclasses.replace(
        manifest,
        agent=agent,
        thresholds=fit_thresholds(proof, manifest.temperature.value, agent, max_risk),
        abstention=_fit_abstention(cases, max_refused),
        fit=Fit(cases.dataset_digest, len(cases), max_risk, max_refused, CONFIDENCE, seed),
    )


def check_shares(max_risk: float, max_refused: float, reliability: float | None) -> None:
    """Refuses what `fit_bundle` would, before anything is read.

    Raises:
        ValueError: One of them is not in (0, 1).
    """
    check_share("risk", max_risk)
    check_share("share of refused screens", max_refused)
    if reliability is not None:
        check_share("simulated agent's reliability", reliability)


def with_hints(cases: Cases, reliability: float | None, seed: int) -> tuple[Cases, str]:
    """The cases with a simulated agent's hints where they carry none and one is asked for.

    Returns:
        The cases, and `measured` or `simulated`.
    """
    experts = cases.logits.shape[1]
    if reliability is None or cases.hints.given.any() or experts < 2:
        return cases, "measured"
    hints = simulate(cases.labels, experts, reliability, seed)
    return dataclasses.replace(cases, hints=hints), "simulated"


def fit_agent(cases: Cases, temperature: float, origin: str) -> AgentModel | None:
    """The agent's weight and reliability; None where it said nothing."""
    if not cases.hints.given.any():
        return None
    return measure_agent(cases.posterior(temperature), cases.labels, cases.hints, origin)


def fit_thresholds(
    cases: Cases, temperature: float, agent: AgentModel | None, max_risk: float
) -> Thresholds:
    """Thresholds above which at most `max_risk` of the decisions are wrong.

    Each is over the cases that its rule decides: the agent's hints; those where it disagrees with
    the head and the pool is with the agent; and those where the pool is with the head.
    """
    if agent is None:
        hinted, why = int(cases.hints.given.sum()), "no record carries an agent's hint"
        if hinted:
            why = f"hints on {hinted} images are too few to know the agent by: {LEAST_CASES} needed"
        silent = Threshold(None, "fitted", why)
        return Thresholds(silent, silent, silent)
    cases = cases[np.flatnonzero(cases.hints.given)]
    each, named = np.arange(len(cases)), cases.hints.expert
    posterior = cases.posterior(temperature)
    pooled, best = pool_all(posterior, cases.hints, agent), posterior.argmax(axis=1)
    of_agent, of_head = pooled[each, named], pooled[each, best]
    wrong_agent, wrong_head = named != cases.labels, best != cases.labels
    accepted, vetoed = of_agent > of_head, (of_head > of_agent) & (named != best)
    return Thresholds(
        agent_fast_path=_threshold(
            cases.hints.believed(agent.reliability), wrong_agent, max_risk, "hints"
        ),
        agent_accept=_threshold(
            of_agent[accepted], wrong_agent[accepted], max_risk, "disputes that the agent wins"
        ),
        agent_veto=_threshold(
            of_head[vetoed], wrong_head[vetoed], max_risk, "disputes that the head wins"
        ),
    )


def _threshold(scores: Floats, wrong: Flags, max_risk: float, what: str) -> Threshold:
    point = safe_threshold(scores, wrong, max_risk)
    if point is None:
        least = least_cases(max_risk)
        return Threshold(
            None,
            "fitted",
            f"no value is shown to be safe: {int(wrong.sum())} of {len(wrong)} {what} are wrong, "
            f"and a risk of {max_risk:g} needs {least} without a mistake at the least",
        )
    return Threshold(
        point.threshold,
        "fitted",
        f"a risk of at most {max_risk:g} with {CONFIDENCE:.0%} confidence: "
        f"{point.mistakes} mistakes in {point.cases} of {point.of} {what}",
    )


def _fit_abstention(cases: Cases, max_share: float) -> AbstentionRule | None:
    """The distance that at most this share of known screens exceed; None without distances."""
    if cases.distance is None:
        return None
    limit = conformal_limit(cases.distance, max_share)
    if limit is None:
        why = f"{len(cases)} images are too few for a share of {max_share:g}"
        return AbstentionRule(None, "fitted", why)
    why = f"exceeded by at most {max_share:g} of known screens (conformal, {len(cases)} images)"
    return AbstentionRule(limit, "fitted", why)
