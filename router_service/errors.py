"""What can be wrong at start, and the errors that several parts of the router raise.

Knows canonical codes; knows neither gRPC nor the executor.
"""

from __future__ import annotations

from service_chassis.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ServiceError,
    Unavailable,
)

__all__ = [
    "Aborted",
    "BundleError",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "ResourceExhausted",
    "ServiceError",
    "Unavailable",
    "unknown_expert",
]


class BundleError(Exception):
    """The router bundle cannot be used, so the router must not start.

    Args:
        message: For the operator: what is wrong with which file, and what to do.
    """


def unknown_expert(name: str, field: str) -> NotFound:
    """The error for a name that is not among the bundle's experts.

    Args:
        name: What the caller wrote.
        field: Field of the request that holds it.
    """
    return NotFound(
        "UNKNOWN_EXPERT",
        "The router knows no expert of this name; GetRouterInfo lists those that it knows.",
        expert=name,
        field=field,
    )
