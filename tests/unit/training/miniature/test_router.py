"""The router step of the miniature: what is drawn for whom, what the bundle states, and resuming.

The executor, stage 1 and the export have tests of their own and are stood in for here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router_service.bundle import load_bundle
from tests.support import router_bundle
from tests.support.feature_cache import state_shown, write_calibrated
from training.agents import simulate
from training.held_out import Cases
from training.judgement import fit_agent, fit_thresholds
from training.miniature import router

JUDGED = 840
NAMES = [expert.name for expert in router_bundle.EXPERTS]


class Steps:
    """What was done, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[tuple[Any, ...]] = []
        for name in ("draw", "extract", "judged_screens", "train_stage1", "export_bundle"):
            monkeypatch.setattr(router, name, getattr(self, name))
        monkeypatch.setattr(router, "executor_started", self.executor_started)
        # The client's place is taken by the address that it would reach.
        monkeypatch.setattr(router, "Molora", lambda executor, timeout_s: _Entered(executor))
        self.broken = False

    def executor_started(self, *flags: str) -> Any:
        self.done.append(("server", "executor_service"))
        return _Entered("here:1")

    def draw(self, folder: Path, names: list[str], **given: Any) -> None:
        self.done.append(("draw", names, given["seed"]))

    def extract(self, drawn: Path, executor: str, out: Path) -> None:
        self.done.append(("extract", drawn.name, executor))
        write_calibrated(out, images=30, digest="a" * 64)

    def judged_screens(self, folder: Path, executor: str, names: list[str], **given: Any) -> None:
        self.done.append(("judged", names, given["seed"], given["images"]))
        write_calibrated(folder, images=given["images"])
        write_calibrated(folder / "unknown", images=3)

    def train_stage1(self, features: Path, *, config: Any, known: Path) -> None:
        # What is known are the experts' own looks, not what the head learns from.
        self.done.append(("stage 1", features.name, known.name, config.seed))
        if self.broken:
            raise KeyboardInterrupt

    def export_bundle(self, result: None, out: Path) -> Path:
        model = router_bundle.head_model(distance="distance").SerializeToString()
        return state_shown(router_bundle.write_bundle(out, model))


class _Entered:
    def __init__(self, value: Any) -> None:
        self._value = value

    def __enter__(self) -> Any:
        return self._value

    def __exit__(self, *_: object) -> None:
        return None


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


@pytest.fixture
def experts(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / "experts" / name).mkdir(parents=True)
        (tmp_path / "experts" / name / "expert.json").write_text("{}")
    # What an expert's training left behind when it was stopped is no expert.
    (tmp_path / "experts" / "half").mkdir()
    return tmp_path / "experts"


def trained(experts: Path, work: Path) -> Path:
    return router.train_router(work / "base", experts, work, seed=5)


def test_one_executor_sees_both_sets_and_the_bundle_is_fitted(
    steps: Steps, experts: Path, tmp_path: Path
) -> None:
    out = trained(experts, tmp_path)
    assert steps.done == [
        ("draw", NAMES, 5 + router.SEED_OFFSET),
        ("draw", NAMES, 5 + router.KNOWN_SEED_OFFSET),
        ("server", "executor_service"),
        ("extract", "routing", "here:1"),
        ("extract", "screens", "here:1"),
        ("judged", NAMES, 5 + router.JUDGED_SEED_OFFSET, JUDGED),
        ("stage 1", "features", "known", 5),
    ]
    manifest = load_bundle(out).manifest
    assert manifest.fit is not None
    assert (manifest.fit.cases, manifest.fit.max_risk) == (JUDGED, router.MAX_RISK)
    assert manifest.fit.max_refused == router.MAX_REFUSED
    assert manifest.agent is not None
    assert manifest.agent.source == "simulated"
    assert "no record carries a hint: simulated, right 80% of the time" in manifest.agent.why
    assert manifest.abstention is not None
    assert manifest.abstention.why == (
        "exceeded by at most 0.002 of known screens (conformal, 840 images)"
    )


def test_a_finished_run_does_nothing(steps: Steps, experts: Path, tmp_path: Path) -> None:
    before = load_bundle(trained(experts, tmp_path))
    steps.done.clear()
    assert load_bundle(trained(experts, tmp_path)) == before
    assert steps.done == []


def test_a_run_that_was_stopped_in_stage_1_extracts_nothing_again(
    steps: Steps, experts: Path, tmp_path: Path
) -> None:
    steps.broken = True
    with pytest.raises(KeyboardInterrupt):
        trained(experts, tmp_path)
    steps.broken = False
    steps.done.clear()
    assert load_bundle(trained(experts, tmp_path)).manifest.fit is not None
    assert [step[0] for step in steps.done] == ["stage 1"]


def test_a_bundle_from_before_it_was_fitted_is_fitted(
    steps: Steps, experts: Path, tmp_path: Path
) -> None:
    before = load_bundle(steps.export_bundle(None, tmp_path / "router"))
    write_calibrated(tmp_path / "features", images=30)
    after = load_bundle(trained(experts, tmp_path))
    assert "stage 1" not in [step[0] for step in steps.done]
    assert after.head == before.head
    assert after.manifest.fit is not None


@pytest.mark.parametrize("seed", range(4))
def test_so_many_images_show_that_a_veto_is_safe(seed: int) -> None:
    """Where the head is always right and sure of it, as on the miniature's screens."""
    labels = np.random.default_rng(seed).integers(0, 7, router.JUDGED_IMAGES)
    cases = Cases(
        dataset_digest="",
        source="",
        logits=(6 * np.eye(7, dtype=np.float32))[labels],
        distance=None,
        vision=np.zeros((len(labels), 1), np.float32),
        labels=labels,
        hints=simulate(labels, 7, router.AGENT_RELIABILITY, seed),
    )
    tuning, proof = cases.divided()
    agent = fit_agent(tuning, 1.0, "simulated")
    limits = fit_thresholds(proof, 1.0, agent, router.MAX_RISK)
    assert limits.agent_veto.value is not None
