"""Rates by mode, by part and crosswise; vacuous cases count for the gate alone."""

import pytest

from tests.support.evaluation import EXPERTS, case_of, result_of
from training.evaluation.scores import WRONG, by, crossed, measure

SURE = {"calendar": 0.9, "claim-window": 0.1}
MISTAKEN = {"calendar": 0.2, "claim-window": 0.8}


@pytest.fixture
def results():
    vacuous = case_of("claim-window", tolerance=(1340, 722))
    return [
        result_of(case_of("calendar"), SURE),
        result_of(case_of("calendar", name="2"), MISTAKEN, modes={"uniform": True}),
        result_of(case_of("calendar", name="3"), None, passing=EXPERTS),
        result_of(vacuous, SURE, modes={"base": True}),
    ]


def test_the_whole(results):
    whole = measure(results)
    rates = {mode: (s.rate.passed, s.rate.n) for mode, s in whole.scores.items()}
    assert rates == {
        "oracle": (3, 3),
        "top1": (1, 3),
        "top2": (1, 3),
        "soft": (1, 3),
        "uniform": (1, 3),
        "random": (0, 3),
        "base": (0, 3),
        WRONG: (1, 3),
    }
    assert (whole.cases, whole.vacuous) == (4, 1)
    assert (whole.gate.passed, whole.gate.n) == (1, 4)
    assert whole.of_oracle == pytest.approx({"top1": 1 / 3, "top2": 1 / 3, "soft": 1 / 3})
    assert whole.scores["top1"].loss == pytest.approx(0.5), "of the two that were answered"
    assert whole.scores["base"].loss == pytest.approx(2.0)


def test_an_expert_whose_cases_say_nothing_has_no_rate(results):
    parts = by(results, lambda result: result.case.expert)
    assert list(parts) == list(EXPERTS)
    claim = parts["claim-window"]
    assert claim.scores["oracle"].rate is claim.scores["oracle"].loss is None
    assert claim.of_oracle == {"top1": None, "top2": None, "soft": None}
    assert claim.gate.n == 1


def test_no_headline_without_an_oracle():
    never = [result_of(case_of("calendar"), SURE, passing=())]
    assert measure(never).of_oracle["top1"] is None


def test_everybody_on_everybodys_cases(results):
    table = crossed(results, EXPERTS)
    assert table["calendar"]["calendar"].value == 1
    assert table["calendar"]["claim-window"].passed == 1
    assert table["claim-window"] == {"calendar": None, "claim-window": None}


def test_answers_that_were_cut_off_are_counted(results):
    from dataclasses import replace

    first = results[0]
    cut = replace(first.by_expert["calendar"], cut=True)
    assert measure([replace(first, by_expert={**first.by_expert, "calendar": cut})]).cut == 1
    assert measure(results).cut == 0
