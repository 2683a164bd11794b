"""What is counted, and that no request can add a label."""

from __future__ import annotations

import math

import pytest
from prometheus_client import CollectorRegistry

from router_service.core import Abstention, Decision, Reason
from router_service.metrics import RouterMetrics

EXPERTS = ("calendar", "chart")


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> RouterMetrics:
    return RouterMetrics(registry, EXPERTS)


def test_marginals_entropy_and_rates(metrics: RouterMetrics, registry: CollectorRegistry) -> None:
    even = {"calendar": 0.5, "chart": 0.5}
    metrics.decided(Decision({"calendar": 1.0}, even, Reason.ROUTER, 0.5, math.log(2)))
    metrics.decided(Decision(even, even, Reason.AGENT_VETOED, 0.5, math.log(2)))
    metrics.decided(Decision({"chart": 1.0}, {}, Reason.AGENT_FAST_PATH, 0.99, 0.0))
    metrics.decided(Decision({}, even, Reason.ABSTAINED, 0.5, math.log(2), Abstention.ERROR, 9.0))

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    assert value("molora_router_gate_total", expert="calendar") == 1.5
    assert value("molora_router_gate_total", expert="chart") == 1.5
    for reason in Reason:
        seen = reason in (
            Reason.ROUTER,
            Reason.AGENT_VETOED,
            Reason.AGENT_FAST_PATH,
            Reason.ABSTAINED,
        )
        assert value("molora_router_decisions_total", reason=reason.value) == float(seen)
    # Nothing was extracted on the fast path, so there is no entropy to speak of.
    assert value("molora_router_entropy_nats_count") == 3
    assert value("molora_router_entropy_nats_sum") == pytest.approx(3 * math.log(2))


def test_the_label_sets_are_closed_from_the_start(
    metrics: RouterMetrics, registry: CollectorRegistry
) -> None:
    labels = {
        tuple(sample.labels.values())
        for metric in registry.collect()
        if metric.type == "counter"
        for sample in metric.samples
        if sample.name.endswith("_total")
    }
    assert labels == {(name,) for name in (*EXPERTS, *(reason.value for reason in Reason))}


def test_held_records(metrics: RouterMetrics, registry: CollectorRegistry) -> None:
    metrics.audit_held(3)
    assert registry.get_sample_value("molora_router_audit_held") == 3
