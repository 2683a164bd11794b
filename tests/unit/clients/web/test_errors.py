"""Every failure has an HTTP status and one of a closed set of texts."""

import pytest

from clients.web import errors
from clients.web.errors import BridgeError, as_failure
from molora_client import (
    AbortedError,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    IncompleteStream,
    InternalError,
    InvalidArgumentError,
    MoloraError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)

CANARY = "Quillabeth-Vantongeren"
TEXTS = {text for _, text in [*errors.REFUSALS.values(), *errors.UPSTREAM.values()]}
TEXTS.add(errors.OTHER_UPSTREAM[1])


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (InvalidArgumentError, 400),
        (NotFoundError, 404),
        (AbortedError, 409),
        (ResourceExhaustedError, 429),
        (UnauthenticatedError, 502),
        (PermissionDeniedError, 502),
        (InternalError, 502),
        (DataLossError, 502),
        (MoloraError, 502),
        (UnavailableError, 503),
        (FailedPreconditionError, 503),
        (DeadlineExceededError, 504),
    ],
)
def test_the_status_of_a_code(kind, status):
    failure = as_failure(kind(f"said of {CANARY}", reason="QUEUE_FULL", request_id="r1"))
    assert failure.status == status
    assert failure.body() == {
        "error": failure.error,
        "reason": "QUEUE_FULL",
        "request_id": "r1",
    }
    assert failure.error in TEXTS


def test_a_reason_that_is_none_is_the_code():
    for reason in ("", CANARY, "not a reason", "A" * 80, "X\n"):
        assert as_failure(NotFoundError("", reason=reason)).reason == "NOT_FOUND"


def test_an_abstention_is_not_the_servers_fault():
    failure = as_failure(FailedPreconditionError("", reason="ABSTAINED"))
    assert (failure.status, failure.reason) == (422, "ABSTAINED")


def test_when_to_try_again_is_in_whole_seconds():
    assert as_failure(ResourceExhaustedError("", retry_after_s=0.2)).retry_after_s == 1
    assert as_failure(ResourceExhaustedError("")).retry_after_s is None


def test_a_cut_stream_is_not_the_callers_fault():
    assert as_failure(IncompleteStream()).status == 502


def test_every_refusal_has_a_text_of_its_own():
    for reason, (status, text) in errors.REFUSALS.items():
        failure = as_failure(BridgeError(reason))
        assert (failure.status, failure.error, failure.reason) == (status, text, reason)
        assert 400 <= status <= 500
    assert len({text for _, text in errors.REFUSALS.values()}) == len(errors.REFUSALS)


def test_a_bug_says_nothing():
    failure = as_failure(RuntimeError(CANARY))
    assert (failure.status, failure.reason) == (500, "INTERNAL")
    assert CANARY not in str(failure)
