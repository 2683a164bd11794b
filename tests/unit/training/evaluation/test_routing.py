"""The router's numbers, against ones worked out by hand."""

import dataclasses
import math

import pytest

from tests.support.evaluation import EXPERTS, case_of, result_of
from training.evaluation.routing import NOBODY, calibration, routing

SURE = {"calendar": 0.9, "claim-window": 0.1}
MISTAKEN = {"calendar": 0.2, "claim-window": 0.8}


@pytest.fixture
def results():
    return [
        result_of(case_of("calendar"), SURE, with_other_screen="claim-window"),
        result_of(case_of("calendar", name="2"), SURE, with_other_screen="calendar"),
        result_of(case_of("calendar", name="3"), MISTAKEN, without_text="calendar"),
        result_of(case_of("claim-window"), MISTAKEN, other_screen="calendar"),
        result_of(case_of("claim-window", name="2"), None, other_screen="claim-window"),
    ]


def test_choices(results):
    found = routing(results, EXPERTS)
    assert found.confusion == {
        "calendar": {"calendar": 2, "claim-window": 1, NOBODY: 0},
        "claim-window": {"calendar": 0, "claim-window": 1, NOBODY: 1},
    }
    assert found.f1 == pytest.approx({"calendar": 4 / 5, "claim-window": 2 / 4})
    assert found.macro_f1 == pytest.approx(0.65)
    assert found.abstained == 1
    assert found.reasons == {"ROUTER": 4}


def test_an_expert_without_cases_has_no_part_in_the_mean():
    found = routing([result_of(case_of("calendar"), SURE)], EXPERTS)
    assert found.f1 == {"calendar": 1.0}
    assert found.macro_f1 == 1.0


def test_shares(results):
    found = routing(results, EXPERTS)
    assert found.labels == {"calendar": 0.6, "claim-window": 0.4}
    assert found.probabilities == pytest.approx({"calendar": 0.55, "claim-window": 0.45})
    assert found.gates["top1"] == pytest.approx({"calendar": 0.4, "claim-window": 0.4})
    assert found.entropies == (0.3,) * 4
    assert found.own_gates == (0.9, 0.9, 0.2, 0.8, 0.0)


def test_controls(results):
    found = routing(results, EXPERTS)
    assert (found.shuffled.own.passed, found.shuffled.own.n) == (1, 4), "the last has no other's"
    assert found.shuffled.other.passed == 1
    assert (found.blanked.own.passed, found.blanked.own.n) == (1, 5)
    assert found.blanked.other is None
    # All screens are of one size: it tells no more than that most cases are the calendar's.
    assert (found.size_alone.passed, found.size_alone.n) == (3, 5)
    others = [
        dataclasses.replace(each, case=dataclasses.replace(each.case, width=9))
        for each in results[3:]
    ]
    assert routing([*results[:3], *others], EXPERTS).size_alone.passed == 5
    alone = [result_of(case_of("calendar"), SURE, other_screen="calendar", with_other_screen="c")]
    assert routing(alone, EXPERTS).shuffled.other is None


def test_calibration(results):
    found = calibration(results)
    assert [(each.cases, each.accuracy) for each in found.bins] == [(2, 0.5), (2, 1.0)]
    assert [each.confidence for each in found.bins] == pytest.approx([0.8, 0.9])
    assert found.ece == pytest.approx((2 * 0.3 + 2 * 0.1) / 4)
    assert found.entropy == pytest.approx(0.3)
    assert calibration(results[-1:]) is None


def test_a_router_that_is_sure_to_the_last_bit():
    certain = [result_of(case_of("calendar"), {"calendar": 1.0, "claim-window": 0.0})]
    assert calibration(certain).ece == 0.0


def test_risk_counts_one_case_an_image(results):
    same = [result_of(case_of("calendar"), SURE) for _ in range(3)]
    assert len(routing(same, EXPERTS).curve) == 1
    curve = routing(results, EXPERTS).curve
    assert curve[-1].coverage == 1
    assert curve[-1].risk == pytest.approx(1 / 4)
    assert math.isclose(curve[0].threshold, 0.9)
    assert routing(results[-1:], EXPERTS).curve == ()
