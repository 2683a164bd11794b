"""The one place where a gRPC status becomes a `MoloraError`.

Reads `grpc-status-details-bin` with messages of a private descriptor pool, so that the SDK needs no
googleapis package and cannot collide with one. Knows no method and no retry rule.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, duration_pb2, message_factory
from google.protobuf.message import DecodeError

from molora_client import errors
from molora_client.errors import MoloraError

DETAILS_KEY = "grpc-status-details-bin"
DOMAIN = "molora"

_BY_CODE: dict[str, type[MoloraError]] = {
    kind.code: kind
    for kind in (
        errors.InvalidArgumentError,
        errors.NotFoundError,
        errors.AlreadyExistsError,
        errors.FailedPreconditionError,
        errors.AbortedError,
        errors.UnavailableError,
        errors.ResourceExhaustedError,
        errors.DeadlineExceededError,
        errors.DataLossError,
        errors.PermissionDeniedError,
        errors.UnauthenticatedError,
        errors.UnimplementedError,
        errors.CancelledError,
        errors.InternalError,
    )
}


@dataclass
class _Details:
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    retry_after_s: float | None = None


def to_molora_error(error: grpc.RpcError, request_id: str) -> MoloraError:
    """What the SDK raises for a failed call.

    Args:
        error: As raised by either grpcio stack; carries code, details and trailing metadata.
        request_id: The id that the call was sent with.

    Returns:
        The error of the status code's class, with the server's reason and retry hint.
    """
    code = error.code().name
    details = _details(error.trailing_metadata() or ())
    kind = _BY_CODE.get(code, MoloraError)
    if kind is errors.NotFoundError and details.reason == errors.CONTEXT_EXPIRED:
        kind = errors.ContextExpiredError
    return kind(
        error.details() or code,
        reason=details.reason,
        metadata=details.metadata,
        retry_after_s=details.retry_after_s,
        request_id=request_id,
    )


def _details(metadata: Iterable[Any]) -> _Details:
    found = _Details()
    blob = next((value for key, value in metadata if key == DETAILS_KEY), b"")
    try:
        status = _STATUS.FromString(blob)
        for packed in status.details:
            _read_detail(packed.type_url.rpartition("/")[2], packed.value, found)
    except (DecodeError, TypeError):
        # A proxy's own or damaged details: code and message still hold.
        return _Details()
    return found


def _read_detail(type_name: str, value: bytes, found: _Details) -> None:
    if type_name == "google.rpc.ErrorInfo":
        info = _ERROR_INFO.FromString(value)
        if info.domain == DOMAIN:
            found.reason, found.metadata = info.reason, dict(info.metadata)
    elif type_name == "google.rpc.RetryInfo":
        delay = _RETRY_INFO.FromString(value).retry_delay
        found.retry_after_s = delay.seconds + delay.nanos / 1e9


def _message_classes() -> tuple[Any, Any, Any]:
    """Status, ErrorInfo and RetryInfo as google/rpc/{status,error_details}.proto number them."""
    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="molora_client/status.proto",
        package="google.rpc",
        syntax="proto3",
        dependency=[any_pb2.DESCRIPTOR.name, duration_pb2.DESCRIPTOR.name],
    )

    def add(message: Any, name: str, number: int, kind: Any, **more: Any) -> None:
        label = more.pop("label", field_type.LABEL_OPTIONAL)
        message.field.add(name=name, number=number, type=kind, label=label, **more)

    status = file.message_type.add(name="Status")
    add(status, "code", 1, field_type.TYPE_INT32)
    add(status, "message", 2, field_type.TYPE_STRING)
    repeated = field_type.LABEL_REPEATED
    nested = field_type.TYPE_MESSAGE
    add(status, "details", 3, nested, label=repeated, type_name=".google.protobuf.Any")

    info = file.message_type.add(name="ErrorInfo")
    add(info, "reason", 1, field_type.TYPE_STRING)
    add(info, "domain", 2, field_type.TYPE_STRING)
    entry_type = ".google.rpc.ErrorInfo.MetadataEntry"
    add(info, "metadata", 3, nested, label=repeated, type_name=entry_type)
    entry = info.nested_type.add(name="MetadataEntry")
    entry.options.map_entry = True
    add(entry, "key", 1, field_type.TYPE_STRING)
    add(entry, "value", 2, field_type.TYPE_STRING)

    retry = file.message_type.add(name="RetryInfo")
    add(retry, "retry_delay", 1, nested, type_name=".google.protobuf.Duration")

    pool = descriptor_pool.DescriptorPool()
    for imported in (any_pb2.DESCRIPTOR, duration_pb2.DESCRIPTOR):
        pool.AddSerializedFile(imported.serialized_pb)
    pool.Add(file)
    names = ("Status", "ErrorInfo", "RetryInfo")
    status_class, info_class, retry_class = (
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"google.rpc.{name}"))
        for name in names
    )
    return status_class, info_class, retry_class


_STATUS, _ERROR_INFO, _RETRY_INFO = _message_classes()
