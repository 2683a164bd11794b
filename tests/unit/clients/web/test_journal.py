"""What the live view is made of."""

import dataclasses

import pytest

from clients.web.journal import KEPT, Entry, Journal
from molora_client import ContextRef, DecisionReason, Routed, RouteTimings

CANARY = "Quillabeth-Vantongeren"


def routed(gates, reason=DecisionReason.ROUTER):
    return Routed(
        gates=gates,
        layer_gates={},
        probabilities=gates,
        reason=reason,
        confidence=0.75,
        entropy=0.5,
        expert_set="e",
        router_version="r1",
        context=ContextRef(CANARY, CANARY, CANARY.encode()),
        timings=RouteTimings(1.0, 2.0, 7.0),
        request_id=CANARY,
    )


def test_the_newest_decision_comes_first_and_holds_no_content():
    journal = Journal()
    journal.note(routed({"calendar": 1.0}))
    journal.note(routed({"claim-window": 1.0}, DecisionReason.MANUAL_OVERRIDE))
    seen = journal.as_json()
    assert [entry["number"] for entry in seen["decisions"]] == [2, 1]
    assert seen["decisions"][0]["reason"] == "MANUAL_OVERRIDE"
    assert (seen["decisions"][1]["gates"], seen["decisions"][1]["ms"]) == ({"calendar": 1.0}, 7.0)
    assert CANARY not in str(seen)
    assert {field.name for field in dataclasses.fields(Entry)} == {
        *("number", "at_s", "gates", "reason", "confidence", "entropy", "ms")
    }


def test_marginals_are_the_mean_of_what_the_router_decided():
    journal = Journal()
    assert journal.as_json()["marginals"] == {}
    journal.note(routed({"calendar": 1.0}))
    journal.note(routed({"calendar": 0.5, "claim-window": 0.5}))
    journal.note(routed({"desktop": 1.0}, DecisionReason.MANUAL_OVERRIDE))
    journal.note(routed({}, DecisionReason.ABSTAINED))
    marginals = journal.as_json()["marginals"]
    assert marginals == pytest.approx({"calendar": 0.75, "claim-window": 0.25})


def test_only_the_last_decisions_are_kept():
    journal = Journal()
    for _ in range(KEPT + 10):
        journal.note(routed({"calendar": 1.0}))
    seen = journal.as_json()
    assert (seen["count"], seen["kept"]) == (KEPT + 10, KEPT)
    assert seen["decisions"][-1]["number"] == 11
