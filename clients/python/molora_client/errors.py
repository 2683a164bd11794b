"""The error tree of the SDK: what a caller can catch, one class per canonical code.

Knows no gRPC: `status.py` turns a wire status into these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class MoloraError(Exception):
    """A call that did not end in a result.

    Args:
        reason: Machine-readable cause, e.g. `UNKNOWN_EXPERT`; empty if the server gave none.
        message: The server's sentence.
        metadata: Everything variable about the failure (field, limit, expert name).
        retry_after_s: When the server suggests trying again, in seconds.
        request_id: The `x-request-id` of the call, for the server's log.
    """

    code: ClassVar[str] = "UNKNOWN"
    default_remedy: ClassVar[str] = "Look for the request id in the server's log."

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.retry_after_s = retry_after_s
        self.request_id = request_id

    @property
    def remedy(self) -> str:
        """What to do about it, one sentence."""
        return REMEDIES.get(self.reason, self.default_remedy)

    def __str__(self) -> str:
        details = ", ".join(f"{key}={value}" for key, value in sorted(self.metadata.items()))
        cause = f"{self.code}/{self.reason}" if self.reason else self.code
        return f"{cause}: {self.message}" + (f" ({details})" if details else "")


class InvalidArgumentError(MoloraError):
    """The request is wrong whatever the state of the server."""

    code = "INVALID_ARGUMENT"
    default_remedy = "Correct the request; sending it again as it is cannot succeed."


class NotFoundError(MoloraError):
    """A named thing does not exist there."""

    code = "NOT_FOUND"
    default_remedy = "Look at what is loaded: molora experts list."


class ContextExpiredError(NotFoundError):
    """The screen's context is gone and its bytes were not kept, or did not help either."""

    default_remedy = "Send the screen's bytes again, or route again."


class AlreadyExistsError(MoloraError):
    """The name or the content is taken."""

    code = "ALREADY_EXISTS"
    default_remedy = "Reload the expert instead, or choose another name."


class FailedPreconditionError(MoloraError):
    """Someone must fix the server's state first."""

    code = "FAILED_PRECONDITION"
    default_remedy = "Compare `router_info()` with `server_info()`: bundle and experts must match."


class AbortedError(MoloraError):
    """The experts changed between the decision and the call."""

    code = "ABORTED"
    default_remedy = "Route again, then generate with the new decision."


class UnavailableError(MoloraError):
    """Nobody answers there, or not now."""

    code = "UNAVAILABLE"
    default_remedy = (
        "Check the address, its TLS and that the server runs (molora serve all), then try again."
    )


class ResourceExhaustedError(MoloraError):
    """A limit, a quota or a queue."""

    code = "RESOURCE_EXHAUSTED"
    default_remedy = "Send less at once, or wait for `retry_after_s` seconds."


class DeadlineExceededError(MoloraError):
    """The call's deadline passed first."""

    code = "DEADLINE_EXCEEDED"
    default_remedy = "Give the call a larger `timeout_s`, or ask for fewer tokens."


class DataLossError(MoloraError):
    """Bytes are corrupt."""

    code = "DATA_LOSS"
    default_remedy = "Copy the file to the server again; its content does not match its digest."


class PermissionDeniedError(MoloraError):
    """The server knows the caller, who may not do this."""

    code = "PERMISSION_DENIED"
    default_remedy = "Use a token whose role allows this call."


class UnauthenticatedError(MoloraError):
    """The server does not know the caller."""

    code = "UNAUTHENTICATED"
    default_remedy = "Give a valid `token`."


class UnimplementedError(MoloraError):
    """The server does not offer this call."""

    code = "UNIMPLEMENTED"
    default_remedy = "Check that the address is that of the right service and of this version."


class CancelledError(MoloraError):
    """The call was cancelled by either side."""

    code = "CANCELLED"
    default_remedy = "Send the request again if its answer is still wanted."


class InternalError(MoloraError):
    """A bug of the server."""

    code = "INTERNAL"
    default_remedy = "Report it with the request id; the server's log has the cause."


class IncompleteStream(InternalError):
    """A stream ended without `completed`: what arrived is not an answer."""

    default_remedy = "Discard the partial text and send the request again."

    def __init__(self, *, request_id: str = "") -> None:
        super().__init__(
            "the stream ended before the server said what it had applied",
            reason="INCOMPLETE_STREAM",
            request_id=request_id,
        )


CONTEXT_EXPIRED = "CONTEXT_EXPIRED"

REMEDIES: Mapping[str, str] = {
    "TOKEN_OVER_PLAINTEXT": "Pass `tls=Tls(...)`, or call a loopback address.",
    "SEVERAL_EXECUTORS": "Make a client of the one `executor` that is to change.",
    "UNKNOWN_EXPERT": "Take a name from `molora experts list`.",
}
