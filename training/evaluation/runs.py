"""What training runs say of themselves: choices and measures side by side, for ablations.

Knows the files of stages 2 and 3; trains and asks nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from router_service.bundle import load_bundle
from router_service.errors import BundleError
from training.joint import LOG_FILE
from training.run_bundle import BUNDLE_FOLDER
from training.run_file import RUN_FILE

# A step has few records, so the end of a run is a mean over its last tenth.
_END_SHARE = 0.1
_UNREADABLE = (OSError, yaml.YAMLError, KeyError, IndexError, TypeError, ValueError, BundleError)


@dataclass(frozen=True)
class TrainingRun:
    """One run.

    Attributes:
        name: Of its folder.
        seed: Of everything by chance.
        gates: How logits became gates, e.g. `soft` or `top-1 straight_through`.
        granularity: `global`, or `per layer`.
        entropy_weight: Of the entropy penalty; 0 is without.
        kl_weight: Of the divergence from the stage before.
        balance_weight: Of the load balance.
        steps: That were done.
        loss: Of the answers at the end, nats a token.
        own_gate: Mean gate of the own expert at the end.
        least_marginal: Smallest mean gate of an expert at the end.
        held_out: Accuracy of its head on held-out records; None where it left no bundle.
        entropies: (step, entropy of the gates as a share of that of uniform ones).
    """

    name: str
    seed: int
    gates: str
    granularity: str
    entropy_weight: float
    kl_weight: float
    balance_weight: float
    steps: int
    loss: float
    own_gate: float
    least_marginal: float
    held_out: float | None
    entropies: tuple[tuple[int, float], ...]


def read_run(folder: Path) -> TrainingRun:
    """Reads a run's folder.

    Raises:
        ValueError: It holds no run of stage 2 or 3, or one that has not saved a step.
    """
    try:
        chosen = yaml.safe_load((folder / RUN_FILE).read_text(encoding="utf-8"))
        lines = (folder / LOG_FILE).read_text(encoding="utf-8").splitlines()
        steps = [json.loads(line) for line in lines]
        return _run(folder, chosen, steps)
    except _UNREADABLE as error:
        raise ValueError(
            f"{folder} is no run of stage 2 or 3: it needs a whole {RUN_FILE} and {LOG_FILE}"
        ) from error


def _run(
    folder: Path, chosen: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]
) -> TrainingRun:
    gates, weights = chosen["gates"], chosen["weights"]
    end = steps[-max(1, round(_END_SHARE * len(steps))) :]
    hard = gates["estimator"] != "soft"
    return TrainingRun(
        name=folder.name,
        seed=chosen["seed"],
        gates=f"top-{gates['top_k']} {gates['estimator']}" if hard else "soft",
        granularity="per layer" if chosen["router"]["per_layer"] else "global",
        entropy_weight=weights["entropy"],
        kl_weight=weights["kl"],
        balance_weight=weights["balance"],
        steps=steps[-1]["step"],
        loss=_mean(end, "answer"),
        own_gate=_mean(end, "own_gate"),
        least_marginal=min(steps[-1]["marginals"]),
        held_out=_held_out(folder / BUNDLE_FOLDER),
        entropies=tuple((step["step"], step["entropy"]) for step in steps),
    )


def _mean(steps: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(sum(step[name] for step in steps) / len(steps))


def _held_out(bundle: Path) -> float | None:
    if not bundle.is_dir():
        return None
    return load_bundle(bundle).manifest.provenance.accuracy.get("held_out")
