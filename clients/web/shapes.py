"""The JSON that callers get, as plain dictionaries. Knows the SDK's results; knows no HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from clients.web.errors import Failure
from molora_client import (
    DecisionReason,
    Expert,
    Experts,
    Generation,
    Prediction,
    Routed,
    RouterInfo,
    ServerInfo,
    ToolCallError,
    parse_tool_calls,
)

# What a caller finds beside `error` when there is no answer: the fields of one, without a value.
UNANSWERED: Mapping[str, Mapping[str, Any]] = {
    "/infer_web": {"task_output": None, "routed_adapter": None, "model": None},
    "/": {"output": None, "adapter": None, "expert": None, "routed": None, "timings": {}},
    "/health": {"status": "not_serving"},
}


@dataclass(frozen=True)
class Answer:
    """One answered question.

    Attributes:
        prediction: Decision and answer.
        experts: What was loaded when it was asked.
        model: Digest of the base model.
        total_s: What it took, as the bridge saw it.
    """

    prediction: Prediction
    experts: tuple[Expert, ...]
    model: str
    total_s: float

    @property
    def adapter(self) -> str | None:
        """The expert with the highest gate that was applied; ties by expert-set order."""
        applied = self.prediction.applied
        names = [expert.name for expert in applied.experts]
        return max(names, key=lambda name: applied.gates.get(name, 0.0), default=None)


def infer_web(answer: Answer) -> dict[str, Any]:
    """What `POST /infer_web` answers."""
    return {
        "task_output": answer.prediction.text,
        "routed_adapter": answer.adapter,
        "model": answer.model,
    }


def plain(answer: Answer) -> dict[str, Any]:
    """What `POST /` answers; times are seconds there."""
    labels = {expert.name: expert.label for expert in answer.experts}
    adapter = answer.adapter
    return {
        "output": answer.prediction.text,
        "adapter": adapter,
        "expert": labels.get(adapter) if adapter is not None else None,
        "routed": answer.prediction.routed.reason is not DecisionReason.MANUAL_OVERRIDE,
        "timings": _seconds(answer),
        "error": None,
    }


def health(experts: Experts, server: ServerInfo, router: RouterInfo) -> dict[str, Any]:
    """What `GET /health` answers when both services answer: the labels to ask with, too."""
    return {
        "status": "serving",
        "model": server.model,
        "router": router.router_version,
        "experts": [{"name": one.name, "label": one.label} for one in experts.experts],
    }


def facts(experts: Experts, server: ServerInfo, router: RouterInfo) -> dict[str, Any]:
    """What the inspector page says about the services."""
    return {
        "model": server.model,
        "device": server.device,
        "dtype": server.dtype,
        "expert_set": experts.expert_set,
        "experts": [
            {
                "name": one.name,
                "label": one.label,
                "rank": one.rank,
                "targets_vision": one.targets_vision,
            }
            for one in experts.experts
        ],
        "router": {
            "version": router.router_version,
            "mode": router.mode.value if router.mode else None,
            "mode_reason": router.mode_reason,
            "temperature": router.temperature,
            "serving": router.serving,
            "not_serving_reason": router.not_serving_reason,
        },
    }


def decision_event(routed: Routed) -> dict[str, Any]:
    """The first line of an inspection. The held screen's capability is not for the page."""
    return {
        "event": "decision",
        "gates": routed.gates,
        "probabilities": routed.probabilities,
        "reason": routed.reason.value,
        "confidence": routed.confidence,
        "entropy": routed.entropy,
        "distance": routed.distance,
        "router_version": routed.router_version,
        "timings": asdict(routed.timings),
        "request_id": routed.request_id,
    }


def completed_event(generation: Generation, total_ms: float) -> dict[str, Any]:
    """The last line of an inspection: the whole answer, and what really ran."""
    applied = generation.applied
    calls, unreadable = _calls(generation.text)
    return {
        "event": "completed",
        "text": generation.text,
        "calls": calls,
        "calls_unreadable": unreadable,
        "finish_reason": generation.finish_reason.value,
        "usage": asdict(generation.usage),
        "applied": {
            "gates": applied.gates,
            "base_only": applied.base_only,
            "vision_reused": applied.vision_reused,
            "experts": [asdict(expert) for expert in applied.experts],
        },
        "timings": asdict(generation.timings),
        "total_ms": total_ms,
        "request_id": generation.request_id,
    }


def error_event(failure: Failure) -> dict[str, Any]:
    """The last line of an inspection that failed after its first."""
    return {"event": "error", "status": failure.status, **failure.body()}


def unanswered(path: str, failure: Failure) -> dict[str, Any]:
    """The body of a failed request, in the shape of its path."""
    return {**UNANSWERED.get(path, {}), **failure.body()}


def _calls(text: str) -> tuple[Sequence[dict[str, Any]], str | None]:
    """The tool calls, or why they cannot be read."""
    try:
        calls = parse_tool_calls(text)
    except ToolCallError as error:
        return [], str(error)
    return [
        {
            "name": call.name,
            "action": call.action,
            "coordinate": call.coordinate,
            "arguments": dict(call.arguments),
        }
        for call in calls
    ], None


def _seconds(answer: Answer) -> dict[str, float]:
    route, generate = answer.prediction.routed.timings, answer.prediction.generation.timings
    taken_ms = {
        "features": route.features_ms,
        "head": route.head_ms,
        "route": route.total_ms,
        "queue": generate.queue_ms,
        "vision": generate.vision_ms,
        "prefill": generate.prefill_ms,
        "decode": generate.decode_ms,
        "time_to_first_token": generate.time_to_first_token_ms,
        "generate": generate.total_ms,
    }
    return {**{name: ms / 1000 for name, ms in taken_ms.items()}, "total": answer.total_s}
