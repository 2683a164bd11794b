"""The one place where a ServiceError becomes a wire status.

Knows the google.rpc error model; knows no single error of the domain.
"""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from service_chassis.errors import ServiceError

DOMAIN = "molora"
DETAILS_KEY = "grpc-status-details-bin"

# Names come from callers and metadata above 4 KB is refused at random along the way.
_MAX_VALUE_CHARS = 200


def rich_status(error: ServiceError) -> status_pb2.Status:
    """The google.rpc.Status of an error: its code, message, ErrorInfo and, if any, RetryInfo.

    Args:
        error: What the service raised.

    Returns:
        The status; metadata values are cut to 200 characters.
    """
    code: int = grpc.StatusCode[error.code].value[0]
    metadata = {key: value[:_MAX_VALUE_CHARS] for key, value in error.metadata.items()}
    details = [
        _packed(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    ]
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after_s * 1000))
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status_pb2.Status(code=code, message=error.message, details=details)


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: ServiceError) -> NoReturn:
    """End the call with the error's status.

    Args:
        context: The call.
        error: What the service raised.

    Raises:
        grpc.aio.AbortError: Always; that is how grpc.aio leaves a handler.
    """
    status = rich_status(error)
    await context.abort(
        grpc.StatusCode[error.code],
        error.message,
        trailing_metadata=((DETAILS_KEY, status.SerializeToString()),),
    )


def _packed(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
