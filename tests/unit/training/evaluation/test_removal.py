"""What it costs to mask experts, by hand."""

import pytest

from tests.support.evaluation import case_of, result_of
from training.evaluation.removal import pruning, removals

EXPERTS = ("a", "b", "c")


@pytest.fixture
def results():
    return [
        # Whoever answers for a is right; b's cases need b; one router's mistake is mended by masks.
        result_of(case_of("a"), {"a": 0.6, "b": 0.3, "c": 0.1}, passing=EXPERTS, second="b"),
        result_of(case_of("a", name="2"), {"a": 0.6, "b": 0.1, "c": 0.3}, passing="ac", second="c"),
        result_of(case_of("b"), {"a": 0.1, "b": 0.7, "c": 0.2}, second="c"),
        result_of(case_of("b", name="2"), {"a": 0.6, "b": 0.3, "c": 0.1}, second="b"),
        result_of(case_of("c"), {"a": 0.1, "b": 0.2, "c": 0.7}, second="b"),
    ]


def test_one_masked_at_a_time(results):
    found = {each.expert: each for each in removals(results, EXPERTS)}
    passed = {
        name: [rate and (rate.passed, rate.n) for rate in (each.everyone, each.own, each.others)]
        for name, each in found.items()
    }
    assert passed == {
        "a": [(5, 5), (2, 2), (3, 3)],
        "b": [(3, 5), (0, 2), (3, 3)],
        "c": [(3, 5), (0, 1), (3, 4)],
    }
    costs = {name: each.cost for name, each in found.items()}
    assert costs == pytest.approx({"a": -0.2, "b": 0.2, "c": 0.2})


def test_down_to_one(results):
    steps = pruning(results, EXPERTS)
    assert [(step.left, step.removed, step.rate.passed) for step in steps] == [
        (3, None, 4),
        (2, "a", 5),
        (1, "b", 3),
    ]


def test_who_comes_second_is_what_the_router_said():
    # Its probabilities would say b.
    told = result_of(case_of("c"), {"a": 0.6, "b": 0.3, "c": 0.1}, second="c")
    assert removals([told], EXPERTS)[0].own is None
    assert removals([told], EXPERTS)[0].everyone.passed == 1


def test_nobody_answers_where_the_router_abstains():
    silent = result_of(case_of("calendar"), None)
    assert [step.rate.passed for step in pruning([silent], ("calendar", "claim-window"))] == [0, 0]
    masked = removals([silent], ("calendar", "claim-window"))
    assert {each.everyone.passed for each in masked} == {0}


def test_a_single_expert_and_vacuous_cases_alone(results):
    assert removals(results, ("a",)) == ()
    vacuous = [result_of(case_of("a", tolerance=(600, 600)), {"a": 0.6, "b": 0.4})]
    assert removals(vacuous, ("a", "b")) == ()
    assert [step.rate for step in pruning(vacuous, ("a", "b"))] == [None, None]
