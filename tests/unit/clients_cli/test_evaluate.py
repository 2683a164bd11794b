"""`molora evaluate` fits a bundle in place and shows what it found."""

import json

import pytest

from router_service.bundle import load_bundle
from tests.support import router_bundle
from tests.support.feature_cache import state_shown, write_calibrated


@pytest.fixture
def bundle(tmp_path):
    model = router_bundle.head_model(distance="distance").SerializeToString()
    return state_shown(router_bundle.write_bundle(tmp_path / "router", model))


@pytest.fixture
def features(tmp_path):
    return write_calibrated(tmp_path / "features", images=400)


def test_it_fits_and_stores(molora, bundle, features, tmp_path):
    done = molora(
        *("evaluate", "--features", features, "--bundle", bundle, "--fit-thresholds"),
        *("--max-risk", 0.05, "--simulated-agent", 0.8, "--report", tmp_path / "report"),
    )
    assert done.exit_code == 0, done.stderr
    manifest = load_bundle(bundle).manifest
    assert manifest.fit.max_risk == 0.05
    assert manifest.agent.source == "simulated"
    assert manifest.thresholds.agent_fast_path.why.split(":")[0] in done.stdout
    assert "coverage at risk 0.05" in done.stdout
    assert (tmp_path / "report" / "judgement.html").exists()


def test_without_the_flag_nothing_is_stored(molora, bundle, features):
    before = load_bundle(bundle)
    done = molora("evaluate", "--features", features, "--bundle", bundle, "--json", "-")
    assert done.exit_code == 0, done.stderr
    assert load_bundle(bundle) == before
    stated = json.loads(done.stdout)
    assert stated["judgement"]["thresholds"]["agent_veto"]["source"] == "typed"
    assert stated["judgement"]["cases"] == 300
    assert stated["report"] is None


def test_a_folder_that_is_no_cache_and_one_that_is_no_bundle(molora, bundle, features, tmp_path):
    done = molora("evaluate", "--features", tmp_path, "--bundle", bundle)
    assert done.exit_code == 2
    assert "no whole feature cache" in done.stderr
    done = molora("evaluate", "--features", features, "--bundle", tmp_path)
    assert done.exit_code == 2
    assert "router.json cannot be read" in done.stderr


@pytest.mark.parametrize("fit", [(), ("--fit-thresholds",)])
@pytest.mark.parametrize("flag", ["--max-risk", "--max-refused", "--simulated-agent"])
@pytest.mark.parametrize("share", [0, 1, -0.5])
def test_a_share_that_is_none(molora, bundle, tmp_path, fit, flag, share):
    """Before anything is read: not even the features are there."""
    before = load_bundle(bundle)
    done = molora(
        *("evaluate", "--features", tmp_path / "none", "--bundle", bundle, *fit, flag, share)
    )
    assert done.exit_code == 2
    assert f" of {share} is out of range: give one in (0, 1)" in done.stderr
    assert load_bundle(bundle) == before


@pytest.mark.parametrize("images", [1, 2])
def test_too_few_images(molora, bundle, tmp_path, images):
    few = write_calibrated(tmp_path / "few", images=images)
    done = molora("evaluate", "--features", few, "--bundle", bundle)
    assert done.exit_code == 2
    assert f"{images} held-out images are too few" in done.stderr
    assert "give features of 3" in done.stderr
