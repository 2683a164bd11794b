"""What a caller of the bridge is told when there is no answer: a closed set of texts.

The one place where a failure becomes an HTTP status. Knows no route, and quotes nobody: neither
the caller's input nor a server's sentence is part of a text.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from molora_client import MoloraError

# Reason to (HTTP status, text): what the bridge itself refuses.
REFUSALS: dict[str, tuple[int, str]] = {
    "BODY_TOO_LARGE": (413, "The request is larger than this bridge accepts; send a smaller one."),
    "BODY_TOO_SLOW": (408, "The request did not arrive in time; send it again."),
    "NOT_JSON": (400, "The body is not a JSON object; send {image_b64, prompt}."),
    "PROMPT_MISSING": (400, "`prompt` must be a text that is not empty."),
    "IMAGE_MISSING": (400, "`image_b64` must be a PNG or JPEG in base64, bare or as a data URL."),
    "IMAGE_NOT_BASE64": (
        400,
        "`image_b64` is not base64; encode the file's bytes and nothing else.",
    ),
    "BAD_LABEL": (400, "`expert` must be an integer label; names go into `adapter`."),
    "BAD_ADAPTER": (400, "`adapter` must be the name of an expert."),
    "BAD_MODE": (400, "`mode` must be soft, top1 or top2."),
    "BAD_CHOICE": (400, "Give at most one of `mode`, an expert and `base_only`."),
    "UNKNOWN_LABEL": (404, "No loaded expert has this label; GET /health lists them."),
    "AMBIGUOUS_LABEL": (409, "Several loaded experts have this label; name one in `adapter`."),
    "LABEL_AND_ADAPTER": (400, "`expert` and `adapter` name different experts; send one of them."),
    "ORIGIN_NOT_ALLOWED": (403, "Pages of this origin may not call; start with --allow-origin."),
    "HOST_NOT_ALLOWED": (421, "This bridge is not served under that host name."),
    "UNKNOWN_PATH": (404, "There is nothing under this path."),
    "METHOD_NOT_ALLOWED": (405, "This path does not take this method."),
    "INTERNAL": (500, "The bridge failed; its log has the place."),
}

# gRPC code to (HTTP status, text): what the services answered. A fault between bridge and services
# is a 502, so that nobody takes it for a fault of the caller.
UPSTREAM: dict[str, tuple[int, str]] = {
    "INVALID_ARGUMENT": (400, "The services refuse this request as it is; see `reason`."),
    "NOT_FOUND": (404, "No such expert is loaded; GET /health lists them."),
    "FAILED_PRECONDITION": (503, "The router and the loaded experts do not match; see `reason`."),
    "ABORTED": (409, "The experts changed meanwhile; send the request again."),
    "RESOURCE_EXHAUSTED": (429, "Too much at once; wait and send the request again."),
    "UNAVAILABLE": (503, "The services do not answer; check that they run."),
    "DEADLINE_EXCEEDED": (504, "The answer took too long; send it again or raise --timeout."),
    "UNAUTHENTICATED": (502, "The services refuse the bridge's token; check --token-file."),
    "PERMISSION_DENIED": (502, "The bridge's token may not do this; it needs the infer role."),
}
# Reasons that say more than their code, by the services' own names.
UPSTREAM_REASONS: dict[str, tuple[int, str]] = {
    "ABSTAINED": (422, "No expert knows this screen, so none was asked; name one to force it."),
}
OTHER_UPSTREAM = (502, "The services failed; look for the request id in their logs.")

_REASON = re.compile(r"[A-Z][A-Z0-9_]{1,63}")


class BridgeError(Exception):
    """A request that the bridge refuses by itself.

    Args:
        reason: A key of `REFUSALS`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Failure:
    """A failure as it is answered.

    Attributes:
        status: HTTP status.
        error: The text, one of the closed set.
        reason: UPPER_SNAKE_CASE, for programs.
        request_id: For the services' logs; empty if they were not asked.
        retry_after_s: Whole seconds after which to try again, or None.
    """

    status: int
    error: str
    reason: str
    request_id: str = ""
    retry_after_s: int | None = None

    def body(self) -> dict[str, str]:
        """The part of a JSON answer that every failure has."""
        return {"error": self.error, "reason": self.reason, "request_id": self.request_id}


def as_failure(error: Exception) -> Failure:
    """What the caller is told.

    Args:
        error: A BridgeError, a MoloraError, or anything else: that is a bug and says nothing more.
    """
    if isinstance(error, BridgeError):
        status, text = REFUSALS[error.reason]
        return Failure(status, text, error.reason)
    if not isinstance(error, MoloraError):
        status, text = REFUSALS["INTERNAL"]
        return Failure(status, text, "INTERNAL")
    known = UPSTREAM_REASONS.get(error.reason) or UPSTREAM.get(error.code)
    status, text = known or OTHER_UPSTREAM
    # A proxy may answer in a server's place, and its reasons are not from our set.
    reason = error.reason if _REASON.fullmatch(error.reason) else error.code
    wait_s = error.retry_after_s
    return Failure(
        status, text, reason, error.request_id, None if wait_s is None else math.ceil(wait_s)
    )
