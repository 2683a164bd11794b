"""`molora evaluate` on the miniature: it starts both services, and everything is really asked."""

import json

import pytest
from typer.testing import CliRunner

from clients.cli.tree import app
from router_service.settings import EMBEDDED_BUNDLE

CASES = 2


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    flags = ["--cases", str(CASES), "--report", str(folder), "--json", str(folder / "e.json")]
    done = CliRunner().invoke(app, ["evaluate", *flags])
    assert done.exit_code == 0, done.stderr
    return json.loads((folder / "e.json").read_text()), folder


def test_every_mode_has_a_score_and_a_loss(evaluated):
    stated, _ = evaluated
    assert stated["cases"] == CASES
    trained = {
        each["name"]
        for each in json.loads((EMBEDDED_BUNDLE / "router.json").read_text())["experts"]
    }
    assert set(stated["experts"]) <= trained
    losses = stated["loss"]
    assert set(losses) == {
        "oracle", "top1", "top2", "soft", "uniform", "random", "base", "wrong_expert",
    }  # fmt: skip
    assert 0 < losses["oracle"] < losses["base"], "an expert learnt what the base never saw"
    assert losses["oracle"] < losses["wrong_expert"]
    for name in losses:
        assert 0 <= stated[f"{name}_accuracy"] <= 1
    assert 0 <= stated["ece"] <= 1


def test_the_trained_router_is_right_and_uses_what_it_sees(evaluated):
    stated, _ = evaluated
    assert stated["gate_accuracy"] == 1
    assert stated["top1_accuracy"] == stated["oracle_accuracy"]
    masked = {each["expert"]: each for each in stated["masking"]}
    assert set(masked) >= set(stated["experts"])


def test_the_page_shows_real_screens(evaluated):
    _, folder = evaluated
    page = (folder / "evaluation.html").read_text()
    assert page.count("<article") >= 2
    assert "data:image/png;base64," in page
