"""The demo's numbers and what they must reach. Knows results; shows nothing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from training.demo.run import Answer, CaseResult
from training.scoring import Rate

MIN_CASES = 20
MIN_ROUTE = 0.95
MIN_ORACLE = 0.9
MIN_ROUTED_OF_ORACLE = 0.97
MAX_BASE = 0.3
MAX_WRONG = 0.3


@dataclass(frozen=True)
class Check:
    """One thing that must hold; `value` and `limit` are in the same unit."""

    name: str
    value: float
    rule: str
    limit: float
    passed: bool


@dataclass(frozen=True)
class Summary:
    """What `summary.json` holds.

    Attributes:
        rates: Name to (passed, n), e.g. `routed_accuracy`.
        override_ok: Whether grpcurl's override and the SDK's call agreed.
        median_route_ms: Route as the client saw it.
        median_predict_ms: Predict as the client saw it.
        seconds: The whole run, servers' start included.
        environment: What ran: digests, versions, device.
    """

    cases: int
    rates: dict[str, Rate]
    override_ok: bool
    median_route_ms: float
    median_predict_ms: float
    seconds: float
    environment: dict[str, str]

    @property
    def checks(self) -> tuple[Check, ...]:
        """Everything that decides the exit code."""
        oracle = self.rates["oracle_accuracy"].value
        return (
            _at_least("cases", self.cases, MIN_CASES),
            self._rate("route_accuracy", MIN_ROUTE),
            self._rate("oracle_accuracy", MIN_ORACLE),
            self._rate("routed_accuracy", MIN_ROUTED_OF_ORACLE * oracle),
            self._rate("base_accuracy", MAX_BASE, at_most=True),
            self._rate("wrong_expert_accuracy", MAX_WRONG, at_most=True),
            _at_least("override_ok", float(self.override_ok), 1),
        )

    @property
    def passed(self) -> bool:
        """Whether every check holds."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """The content of `summary.json`."""
        return {
            "passed": self.passed,
            "cases": self.cases,
            **{name: rate.value for name, rate in self.rates.items()},
            "override_ok": self.override_ok,
            "median_route_ms": self.median_route_ms,
            "median_predict_ms": self.median_predict_ms,
            "counts": {name: [rate.passed, rate.n] for name, rate in self.rates.items()},
            "wilson_95": {name: list(rate.interval) for name, rate in self.rates.items()},
            "checks": [asdict(check) for check in self.checks],
            "seconds": self.seconds,
            "environment": self.environment,
        }

    def _rate(self, name: str, limit: float, *, at_most: bool = False) -> Check:
        value = self.rates[name].value
        if at_most:
            return Check(name, value, "at most", limit, value <= limit)
        return _at_least(name, value, limit)


def summarise(
    results: Sequence[CaseResult],
    *,
    override_ok: bool,
    seconds: float,
    environment: dict[str, str],
) -> Summary:
    """Counts what was right.

    Args:
        results: One per case, at least one.
        override_ok: Whether grpcurl's override and the SDK's call agreed.
        seconds: The whole run.
        environment: What ran.
    """
    return Summary(
        cases=len(results),
        rates={
            "route_accuracy": Rate(sum(r.route_right for r in results), len(results)),
            "oracle_accuracy": _rate([r.oracle for r in results]),
            "routed_accuracy": _rate([r.prediction for r in results]),
            "base_accuracy": _rate([r.base for r in results]),
            "wrong_expert_accuracy": _rate([r.wrong for r in results]),
        },
        override_ok=override_ok,
        median_route_ms=statistics.median(r.route_ms for r in results),
        median_predict_ms=statistics.median(r.predict_ms for r in results),
        seconds=seconds,
        environment=environment,
    )


def _rate(answers: Sequence[Answer]) -> Rate:
    return Rate(sum(answer.right for answer in answers), len(answers))


def _at_least(name: str, value: float, limit: float) -> Check:
    return Check(name, value, "at least", limit, value >= limit)
