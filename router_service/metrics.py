"""What the router decides, as Prometheus metrics. Labels are reasons and the bundle's experts only.

Knows decisions; knows no request. Rates are quotients over a window: the veto rate is that of
`molora_router_decisions_total{reason="agent_vetoed"}` over all of them, likewise `abstained` and
`manual_override`; an expert's marginal is `molora_router_gate_total` over all decisions.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from router_service.core import Decision, Reason

# ln 2, the most that two experts can reach, and ln 7 = 1.95, the most that seven can.
_ENTROPY_BUCKETS = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0)


class RouterMetrics:
    """The router's own metrics.

    Args:
        registry: The server's.
        experts: The bundle's; no other name ever becomes a label.
    """

    def __init__(self, registry: CollectorRegistry, experts: Sequence[str]) -> None:
        decisions = Counter(
            "molora_router_decisions_total",
            "Decisions, by the rule that decided.",
            ["reason"],
            registry=registry,
        )
        gates = Counter(
            "molora_router_gate_total", "Sum of the gates given.", ["expert"], registry=registry
        )
        # Made at once: a rate over a series that begins with its first event misses that event.
        self._decisions = {reason: decisions.labels(reason.value) for reason in Reason}
        self._gates = {expert: gates.labels(expert) for expert in experts}
        self._entropy = Histogram(
            "molora_router_entropy_nats",
            "Entropy of the head's probabilities, before mask and agent.",
            buckets=_ENTROPY_BUCKETS,
            registry=registry,
        )
        self._held = Gauge(
            "molora_router_audit_held",
            "Audit records that wait in memory because the file cannot be written.",
            registry=registry,
        )

    def decided(self, decision: Decision) -> None:
        """Count a decision, also one that is answered with an error."""
        self._decisions[decision.reason].inc()
        for expert, gate in decision.gates.items():
            self._gates[expert].inc(gate)
        if decision.probabilities:
            self._entropy.observe(decision.entropy)

    def audit_held(self, records: int) -> None:
        """State how many audit records wait."""
        self._held.set(records)
