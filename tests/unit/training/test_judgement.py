"""What a router acts on, fitted to cases whose mistakes are known, and stored in its bundle."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from router_service.bundle import Bundle, load_bundle
from router_service.head import Head
from router_service.weights import pool
from tests.support import router_bundle
from tests.support.feature_cache import state_shown
from tests.support.feature_cache import write_calibrated as write_cache
from training.agents import Hints
from training.features import load_features
from training.held_out import Cases
from training.judgement import fit_bundle, fit_manifest, read_bundle_cases
from training.judgement_report import Judgement, judge, write_judgement
from training.shown import SHOWN_FILE, ShownImages

EXPERTS = router_bundle.EXPERTS


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    model = router_bundle.head_model(distance="distance").SerializeToString()
    return state_shown(router_bundle.write_bundle(tmp_path / "router", model))


def cases_of(bundle: Path, cache: Path, seed: int = 0) -> Cases:
    return read_bundle_cases(bundle, cache, seed)[1]


def hinted(cases: Cases, rows: slice) -> Cases:
    """The cases with an agent that is right about some of them, and silent on the others."""
    expert = np.full(len(cases), -1)
    expert[rows] = cases.labels[rows]
    return dataclasses.replace(cases, hints=Hints(expert, np.full(len(cases), np.nan)))


class TestCases:
    def test_one_an_image_in_an_order_that_means_nothing(
        self, bundle: Path, tmp_path: Path
    ) -> None:
        cache = write_cache(tmp_path / "cache", images=60, rows=4)
        cases = cases_of(bundle, cache)
        assert len(cases) == 60
        assert cases.source == "screens that the head has not learnt from"
        again, other = cases_of(bundle, cache), cases_of(bundle, cache, seed=1)
        assert (again.logits == cases.logits).all()
        assert (other.logits != cases.logits).any()
        tuning, proof = cases.divided()
        assert (len(tuning), len(proof)) == (15, 45)
        assert (np.concatenate([tuning.labels, proof.labels]) == cases.labels).all()

    def test_only_images_that_the_head_has_not_learnt_from(
        self, bundle: Path, tmp_path: Path
    ) -> None:
        """Whatever else the records are, and whichever file they are in."""
        cache = write_cache(tmp_path / "cache", images=60)
        table = load_features(cache)
        image = table.image
        state_shown(
            bundle,
            ShownImages.of(
                {"train": image[:20], "validation": image[20:25], "held_out": image[25:40]}
            ),
        )
        cases = cases_of(bundle, cache)
        assert cases.source == "those of the screens that the head has not learnt from"
        assert cases.distance is not None
        assert sorted(cases.distance) == pytest.approx(sorted(table.vision[25:, 0].tolist()))
        state_shown(bundle, ShownImages.of({"train": image}))
        with pytest.raises(ValueError, match="give features of others"):
            cases_of(bundle, cache)

    def test_a_bundle_that_does_not_say_what_it_learnt_from(
        self, bundle: Path, tmp_path: Path
    ) -> None:
        cache = write_cache(tmp_path / "cache")
        (bundle / SHOWN_FILE).write_bytes(ShownImages.of({"train": [1]}).to_bytes())
        with pytest.raises(ValueError, match=r"no shown\.safetensors that it names.*export it"):
            cases_of(bundle, cache)
        (bundle / SHOWN_FILE).unlink()
        with pytest.raises(ValueError, match=r"no shown\.safetensors that it names"):
            cases_of(bundle, cache)
        router_bundle.write_bundle(bundle)
        with pytest.raises(ValueError, match=r"no shown\.safetensors that says"):
            cases_of(bundle, cache)

    def test_labels_and_hints_are_the_bundles(self, bundle: Path, tmp_path: Path) -> None:
        backwards = tuple(reversed(EXPERTS))
        straight = cases_of(bundle, write_cache(tmp_path / "a", images=40, hints=0.5))
        turned = cases_of(
            bundle, write_cache(tmp_path / "b", images=40, hints=0.5, experts=backwards)
        )
        assert (straight.labels == turned.labels).all()
        right = straight.hints.expert == straight.labels
        assert ((turned.hints.expert == turned.labels) == right).all()
        silent = cases_of(bundle, write_cache(tmp_path / "c", images=40))
        assert not silent.hints.given.any()

    @pytest.mark.parametrize("rows", [slice(0, 40), slice(20, 41), slice(38, 80), slice(79, 80)])
    def test_both_parts_have_their_share_of_the_hints(
        self, bundle: Path, tmp_path: Path, rows: slice
    ) -> None:
        """Wherever they are; each case is in one part."""
        cases = hinted(cases_of(bundle, write_cache(tmp_path / "cache", images=80)), rows)
        given = int(cases.hints.given.sum())
        tuning, proof = cases.divided()
        assert (len(tuning), len(proof)) == (20, 60)
        assert int(tuning.hints.given.sum()) == round(given / 4)
        assert cases.distance is not None
        assert tuning.distance is not None
        assert proof.distance is not None
        both = [*tuning.distance, *proof.distance]
        assert sorted(both) == sorted(cases.distance)

    @pytest.mark.parametrize("images", [1, 2])
    def test_too_few_to_divide(self, bundle: Path, tmp_path: Path, images: int) -> None:
        cases = cases_of(bundle, write_cache(tmp_path / "cache", images=3))
        few = cases[np.arange(images)]
        with pytest.raises(ValueError, match=f"{images} held-out images .* give features of 3"):
            few.divided()
        with pytest.raises(ValueError, match="too few to divide"):
            judge(load_bundle(bundle), few, max_risk=0.05)
        tuning, proof = cases.divided()
        assert (len(tuning), len(proof)) == (1, 2)
        assert judge(load_bundle(bundle), cases, max_risk=0.05).cases == 2

    def test_other_features_and_other_experts(self, bundle: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="not what the bundle's head reads"):
            cases_of(bundle, write_cache(tmp_path / "a", text_layer=9))
        changed = (dataclasses.replace(EXPERTS[0], digest="0" * 64), *EXPERTS[1:])
        with pytest.raises(ValueError, match="calendar in a version"):
            cases_of(bundle, write_cache(tmp_path / "b", experts=changed))


class TestFit:
    def test_everything_is_fitted_and_stored(self, bundle: Path, tmp_path: Path) -> None:
        before = load_bundle(bundle)
        cache = write_cache(tmp_path / "cache", images=12_000)
        fitted = fit_bundle(bundle, cache, max_risk=0.1, max_refused=0.1, reliability=0.8)
        assert fitted == load_bundle(bundle)
        assert fitted.version != before.version
        assert fitted.head == before.head
        manifest = fitted.manifest
        Head(fitted.head, manifest)
        limits = manifest.thresholds
        for limit in (limits.agent_fast_path, limits.agent_accept, limits.agent_veto):
            assert limit.source == "fitted"
            assert limit.value is not None
            assert 0.5 < limit.value < 1
            assert limit.why.startswith("a risk of at most 0.1 with 95% confidence: ")
        assert manifest.agent is not None
        assert manifest.agent.source == "simulated"
        assert manifest.agent.reliability == pytest.approx(0.8, abs=0.03)
        assert manifest.abstention is not None
        assert manifest.abstention.threshold == pytest.approx(0.9, abs=0.02)
        assert manifest.fit is not None
        assert (manifest.fit.cases, manifest.fit.max_risk) == (12_000, 0.1)
        assert manifest.fit.dataset_digest == "f" * 64

    def test_the_risk_is_kept_on_cases_that_nothing_was_fitted_to(
        self, bundle: Path, tmp_path: Path
    ) -> None:
        cache = write_cache(tmp_path / "cache", images=12_000)
        manifest = fit_bundle(
            bundle, cache, max_risk=0.1, max_refused=0.1, reliability=0.8
        ).manifest
        agent, limits = manifest.agent, manifest.thresholds
        assert agent is not None
        fresh = cases_of(bundle, write_cache(tmp_path / "fresh", images=6000, seed=1))
        noise = np.random.default_rng(2)
        confidence = noise.beta(3.2, 0.8, len(fresh))
        right = noise.random(len(fresh)) < confidence
        named = np.where(right, fresh.labels, (fresh.labels + noise.integers(1, 3, 6000)) % 3)
        wrong: dict[str, list[bool]] = {"fast": [], "accept": [], "veto": []}
        for heard, label, hint, said in zip(
            fresh.posterior(1.0), fresh.labels, named, confidence, strict=True
        ):
            best = int(heard.argmax())
            pooled = pool(heard, int(hint), float(said), agent.weight, agent.ceiling)
            if limits.agent_fast_path.reached_by(float(said)):
                wrong["fast"].append(hint != label)
            if hint != best and limits.agent_accept.reached_by(pooled[hint]):
                wrong["accept"].append(hint != label)
            if hint != best and limits.agent_veto.reached_by(pooled[best]):
                wrong["veto"].append(best != label)
        for mistakes in wrong.values():
            assert len(mistakes) > 50
            assert np.mean(mistakes) <= 0.11

    def test_nothing_is_known_of_an_agent_that_gave_no_hint(
        self, bundle: Path, tmp_path: Path
    ) -> None:
        cache = write_cache(tmp_path / "cache")
        manifest = fit_bundle(bundle, cache, max_risk=0.05, max_refused=0.05).manifest
        assert manifest.agent is None
        assert manifest.thresholds.agent_veto.value is None
        assert manifest.thresholds.agent_veto.why == "no record carries an agent's hint"
        assert manifest.abstention is not None
        assert manifest.abstention.threshold is not None

    def test_an_agent_that_said_nothing_on_the_first_cases(
        self, bundle: Path, tmp_path: Path
    ) -> None:
        cases = cases_of(bundle, write_cache(tmp_path / "cache", images=80))
        shares = {"max_risk": 0.05, "max_refused": 0.05, "reliability": None, "seed": 0}
        manifest = load_bundle(bundle).manifest
        agent = fit_manifest(manifest, hinted(cases, slice(20, 80)), **shares).agent
        assert agent is not None
        assert agent.why.startswith("15 of 15 measured hints were right")
        few = fit_manifest(manifest, hinted(cases, slice(20, 22)), **shares)
        assert few.agent is None
        assert few.thresholds.agent_fast_path.why == (
            "hints on 2 images are too few to know the agent by: 3 needed"
        )

    def test_hints_of_the_records_go_before_a_simulation(
        self, bundle: Path, tmp_path: Path
    ) -> None:
        cache = write_cache(tmp_path / "cache", images=400, hints=0.9)
        agent = fit_bundle(
            bundle, cache, max_risk=0.05, max_refused=0.05, reliability=0.3
        ).manifest.agent
        assert agent is not None
        assert agent.source == "measured"
        assert agent.reliability == pytest.approx(0.9, abs=0.06)

    def test_too_few_cases_never_reach_a_threshold(self, bundle: Path, tmp_path: Path) -> None:
        cache = write_cache(tmp_path / "cache", images=80)
        manifest = fit_bundle(
            bundle, cache, max_risk=0.01, max_refused=0.01, reliability=0.8
        ).manifest
        assert manifest.thresholds.agent_fast_path.value is None
        assert "needs 528 without a mistake" in manifest.thresholds.agent_fast_path.why
        assert manifest.abstention is not None
        assert manifest.abstention.threshold is None
        assert "80 images are too few" in manifest.abstention.why

    def test_a_head_without_a_distance_abstains_from_nothing(self, tmp_path: Path) -> None:
        bundle = state_shown(router_bundle.write_bundle(tmp_path / "router"))
        cache = write_cache(tmp_path / "cache")
        assert (
            fit_bundle(bundle, cache, max_risk=0.05, max_refused=0.05).manifest.abstention is None
        )

    def test_the_same_seed_gives_the_same_bundle(self, bundle: Path, tmp_path: Path) -> None:
        cache = write_cache(tmp_path / "cache", images=200)
        one, two = (
            fit_bundle(bundle, cache, max_risk=0.05, max_refused=0.05, reliability=0.8).version
            for _ in range(2)
        )
        assert one == two
        other = fit_bundle(
            bundle, cache, max_risk=0.05, max_refused=0.05, reliability=0.8, seed=1
        ).version
        assert other != one

    @pytest.mark.parametrize("max_risk", [0.0, 1.0, -1.0, math.nan])
    def test_no_risk(self, bundle: Path, tmp_path: Path, max_risk: float) -> None:
        before = load_bundle(bundle)
        cache = write_cache(tmp_path / "cache")
        with pytest.raises(ValueError, match=r"a risk of .* give one in \(0, 1\)"):
            fit_bundle(bundle, cache, max_risk=max_risk, max_refused=0.05)
        with pytest.raises(ValueError, match="a share of refused screens of"):
            fit_bundle(bundle, cache, max_risk=0.05, max_refused=max_risk)
        with pytest.raises(ValueError, match="a simulated agent's reliability of"):
            fit_bundle(bundle, cache, max_risk=0.05, max_refused=0.05, reliability=max_risk)
        with pytest.raises(ValueError, match="a risk of"):
            judge(before, cases_of(bundle, cache), max_risk)
        assert load_bundle(bundle) == before

    def test_one_image(self, bundle: Path, tmp_path: Path) -> None:
        cache = write_cache(tmp_path / "cache", images=1)
        with pytest.raises(ValueError, match="1 held-out images are too few"):
            fit_bundle(bundle, cache, max_risk=0.05, max_refused=0.05)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Cases]:
    folder = tmp_path_factory.mktemp("judged")
    model = router_bundle.head_model(distance="distance").SerializeToString()
    bundle = state_shown(router_bundle.write_bundle(folder / "router", model))
    cache = write_cache(folder / "cache", images=800)
    return fit_bundle(bundle, cache, max_risk=0.05, max_refused=0.05, reliability=0.8), cases_of(
        bundle, cache
    )


@pytest.fixture(scope="module")
def judgement(fitted: tuple[Bundle, Cases]) -> Judgement:
    return judge(*fitted, max_risk=0.05)


class TestReport:
    def test_the_router_alone(self, fitted: tuple[Bundle, Cases], judgement: Judgement) -> None:
        _, proof = fitted[1].divided()
        right = int((proof.logits.argmax(axis=1) == proof.labels).sum())
        assert (judgement.accuracy.passed, judgement.accuracy.n) == (right, 600)
        # The made-up head is calibrated, and temperature 1 is in force.
        assert judgement.ece[0] == judgement.ece[1] < 0.05
        assert sum(each.cases for each in judgement.bins[1]) == 600
        assert sum(judgement.marginals.values()) == pytest.approx(1)
        assert judgement.curve[-1].risk == pytest.approx(1 - right / 600)
        assert judgement.point is not None
        assert judgement.point.bound <= 0.05
        assert judgement.refusals is not None
        assert judgement.refusals.known.value <= 0.05
        assert judgement.is_of_the_fit

    def test_no_agent_makes_it_worse_than_the_better_of_both(self, judgement: Judgement) -> None:
        asked = [(each.reliability, each.confident) for each in judgement.agents]
        assert asked == [(r, c) for r in (0.6, 0.8, 0.95) for c in (True, False)]
        for each in judgement.agents:
            assert each.loss == 0
            assert sum(each.reasons.values()) == 600
            low, high = each.agent.interval
            assert low < each.reliability < high

    def test_json_has_rates_with_their_intervals(
        self, judgement: Judgement, tmp_path: Path
    ) -> None:
        write_judgement(judgement, tmp_path / "report")
        stated = json.loads((tmp_path / "report" / "judgement.json").read_text())
        assert stated["accuracy"] == {
            "value": judgement.accuracy.value,
            "passed": judgement.accuracy.passed,
            "n": 600,
            "wilson_95": list(judgement.accuracy.interval),
        }
        assert [each["loss"] for each in stated["agents"]] == [0] * 6
        assert stated["is_of_the_fit"] is True
        assert stated["fit"]["max_refused"] == 0.05
        assert stated["refusals"]["known"]["n"] == 800
        assert stated["agents"][0]["model"]["source"] == "simulated"
        assert (stated["ece"][0], len(stated["curve"])) == (judgement.ece[0], 60)

    def test_records_that_the_thresholds_are_not_fitted_to(
        self, fitted: tuple[Bundle, Cases]
    ) -> None:
        bundle, cases = fitted
        other = judge(bundle, dataclasses.replace(cases, dataset_digest="0" * 64), max_risk=0.05)
        assert not other.is_of_the_fit

    def test_the_page_stands_alone(self, judgement: Judgement, tmp_path: Path) -> None:
        page = write_judgement(judgement, tmp_path / "report").read_text()
        assert page.count("<svg") == 3
        assert "http" not in page
        assert "<script" not in page
        assert "95 %" in page
        assert "exceeded by at most 0.05 of known screens" in page
