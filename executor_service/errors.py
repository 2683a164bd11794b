"""Errors of the executor that more than one of its rooms raises; knows no gRPC and no model.

Every message is constant: what varies goes into metadata. Of what a caller wrote only an expert's
name is in it, which goes back to that caller and into no log.
"""

from __future__ import annotations

from service_chassis.errors import (
    Aborted,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)


class NotLoadable(Exception):
    """The model or an expert of the start-up set cannot be used.

    Args:
        message: For the operator: what, why, and what to do.
    """


def context_expired() -> NotFound:
    """A `context_id` that this replica does not hold (any more)."""
    return NotFound(
        "CONTEXT_EXPIRED", "This context is not held here (any more); send the screen's bytes."
    )


def unknown_expert(name: str) -> NotFound:
    """An expert name that is not loaded."""
    return NotFound(
        "UNKNOWN_EXPERT", "No such expert is loaded; ListExperts names them.", expert=name
    )


def expert_set_changed(loaded: str) -> Aborted:
    """The caller routed against other experts than the loaded ones."""
    return Aborted(
        "EXPERT_SET_CHANGED",
        "The loaded experts are not those the caller routed against; route again.",
        expert_set=loaded,
    )


def queue_full(retry_after_s: float, queue_length: int) -> ResourceExhausted:
    """No place is left in the queue."""
    return ResourceExhausted(
        "QUEUE_FULL",
        "The queue is full; retry after the given delay.",
        retry_after_s=retry_after_s,
        queue_length=queue_length,
    )


def deadline_passed() -> DeadlineExceeded:
    """The caller's deadline passed before the request was done."""
    return DeadlineExceeded(
        "DEADLINE_PASSED", "The deadline passed before the answer was complete; allow more time."
    )


def deadline_too_short() -> DeadlineExceeded:
    """Those that wait already will take longer than the caller does."""
    return DeadlineExceeded(
        "DEADLINE_TOO_SHORT",
        "The queue is longer than the deadline allows; allow more time, or ask later.",
    )


def engine_stopped() -> Unavailable:
    """The worker died or is being stopped."""
    return Unavailable("ENGINE_STOPPED", "The engine has stopped; retry on another replica.")


def still_loading() -> Unavailable:
    """The model is not loaded yet."""
    return Unavailable(
        "STILL_LOADING",
        "The model is still being loaded; wait until health says SERVING.",
        retry_after_s=1.0,
    )


def too_long(reason: str, limit_tokens: int) -> InvalidArgument:
    """Prompt (and answer) do not fit into the model's context."""
    return InvalidArgument(
        reason,
        "The prompt, its screen and the answer do not fit; shorten the prompt or the answer.",
        limit_tokens=limit_tokens,
    )
