"""The error tree of both services; knows canonical codes, not gRPC and not the domain.

An error is raised once, deep inside, with a constant message and a machine-readable reason. The
interceptor turns it into a wire status in one place. Nothing a caller wrote (prompt, screen bytes,
path, address) may be part of `message` or `metadata`; the names of experts, fields and limits may.
"""

from __future__ import annotations

from typing import ClassVar


class ServiceError(Exception):
    """An error that a client is meant to see.

    Args:
        reason: UPPER_SNAKE_CASE constant, unique per cause, e.g. `UNKNOWN_EXPERT`.
        message: Constant English sentence that names the remedy.
        retry_after_s: When to try again, in seconds; becomes RetryInfo.
        **metadata: Everything variable (field, limit, expert name), also readable by machines.
    """

    code: ClassVar[str] = "INTERNAL"

    def __init__(
        self, reason: str, message: str, *, retry_after_s: float | None = None, **metadata: object
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s
        self.metadata = {key: str(value) for key, value in metadata.items()}


class InvalidArgument(ServiceError):
    """Wrong whatever the state of the server."""

    code = "INVALID_ARGUMENT"


class NotFound(ServiceError):
    """A named thing does not exist here."""

    code = "NOT_FOUND"


class AlreadyExists(ServiceError):
    """The name or the content is taken."""

    code = "ALREADY_EXISTS"


class FailedPrecondition(ServiceError):
    """Someone must fix the state first."""

    code = "FAILED_PRECONDITION"


class Aborted(ServiceError):
    """The state moved under the caller: start over, then retry."""

    code = "ABORTED"


class Unavailable(ServiceError):
    """Back off and retry the same call."""

    code = "UNAVAILABLE"


class ResourceExhausted(ServiceError):
    """A limit, a quota or a queue."""

    code = "RESOURCE_EXHAUSTED"


class DeadlineExceeded(ServiceError):
    """The caller's deadline has passed or cannot be met."""

    code = "DEADLINE_EXCEEDED"


class DataLoss(ServiceError):
    """Bytes are corrupt."""

    code = "DATA_LOSS"


class PermissionDenied(ServiceError):
    """The caller is known and may not do this."""

    code = "PERMISSION_DENIED"


class Unauthenticated(ServiceError):
    """The caller is not known."""

    code = "UNAUTHENTICATED"


class Unimplemented(ServiceError):
    """Not offered by this server."""

    code = "UNIMPLEMENTED"


class Internal(ServiceError):
    """Our bug."""

    code = "INTERNAL"
