"""Keeps account of every request: metrics of what was decided, and one audit record each.

Knows decisions, digests and who called; nothing of a prompt, a screen or an answer comes here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from router_service.audit import AuditLog
from router_service.core import Decision, ExecutorInfo
from router_service.errors import ServiceError
from router_service.manifest import Manifest
from router_service.metrics import RouterMetrics
from router_service.policy import Ask


@dataclass
class Entry:
    """One request, from its arrival to its decision.

    Attributes:
        method: `Route` or `Predict`.
        request_id: The interceptor's.
        caller: See `service_chassis.auth.caller`.
        verdict: What was decided, if anything, as the record holds it.
    """

    method: str
    request_id: str
    caller: str
    verdict: dict[str, Any]


class Ledger:
    """Where the servicer states what it did.

    Args:
        manifest: The bundle's.
        version: The bundle's digest.
        metrics: Counts decisions.
        audit: Keeps records; None where the operator wants none.
    """

    def __init__(
        self, manifest: Manifest, version: str, metrics: RouterMetrics, audit: AuditLog | None
    ) -> None:
        self._names = tuple(expert.name for expert in manifest.experts)
        self._digests = {expert.name: expert.digest for expert in manifest.experts}
        self._version = version
        self._metrics = metrics
        self._audit = audit

    def close(self) -> None:
        """Close the audit trail."""
        if self._audit is not None:
            self._audit.close()

    @contextlib.contextmanager
    def entry(self, method: str, request_id: str, caller: str) -> Iterator[Entry]:
        """Around one request up to its decision; however it ends, its record is written then.

        Args:
            method: `Route` or `Predict`.
            request_id: The interceptor's.
            caller: See `service_chassis.auth.caller`.

        Raises:
            Unavailable: The audit trail takes no more records, so nothing is decided.
        """
        if self._audit is not None:
            self._audit.check()
        entry = Entry(method, request_id, caller, {})
        code, cause = "OK", ""
        try:
            yield entry
        except ServiceError as error:
            code, cause = error.code, error.reason
            raise
        except Exception:
            code, cause = "INTERNAL", "INTERNAL"
            raise
        except BaseException:
            # The caller left, or its deadline passed.
            code, cause = "CANCELLED", ""
            raise
        finally:
            self._record(entry, code, cause)

    def decided(self, entry: Entry, ask: Ask, decision: Decision, info: ExecutorInfo) -> None:
        """State a request's decision, within its entry."""
        self._metrics.decided(decision)
        hint = None
        if ask.hinted is not None:
            hint = {"expert": self._names[ask.hinted], "confidence": ask.hint_confidence}
        masked = [n for n, allowed in zip(self._names, ask.allowed, strict=True) if not allowed]
        entry.verdict = {
            "reason": decision.reason.value,
            "abstention": decision.abstention.value if decision.abstention else None,
            "gates": dict(decision.gates),
            **(
                {"layer_gates": [dict(each) for each in decision.layers]} if decision.layers else {}
            ),
            "experts": {name: self._digests[name] for name in decision.gates},
            "mode": ask.mode.value,
            "temperature": ask.temperature,
            "masked_experts": masked,
            "hint": hint,
            "confidence": decision.confidence,
            "entropy": decision.entropy,
            "distance": decision.distance,
            "expert_set": info.expert_set,
            "model": info.model,
            "feature_spec": info.feature_spec,
        }

    def _record(self, entry: Entry, code: str, cause: str) -> None:
        if self._audit is None:
            return
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        self._audit.add(
            {
                "time": now,
                "request_id": entry.request_id,
                "caller": entry.caller,
                "method": entry.method,
                "code": code,
                "cause": cause,
                "router_version": self._version,
                **entry.verdict,
            }
        )
