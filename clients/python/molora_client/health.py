"""`grpc.health.v1` as far as a client asks for it, in messages of a private descriptor pool.

So that the SDK needs no package for it and cannot collide with one. Knows no address.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

from molora_client.wire import Method

SERVING = 1


def _message_classes() -> tuple[Any, Any]:
    """HealthCheckRequest and HealthCheckResponse as grpc/health/v1/health.proto numbers them."""
    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="molora_client/health.proto", package="grpc.health.v1", syntax="proto3"
    )
    # The status is an enum there, which is the same on the wire as a number.
    for message, name, kind in (
        ("HealthCheckRequest", "service", field_type.TYPE_STRING),
        ("HealthCheckResponse", "status", field_type.TYPE_INT32),
    ):
        added = file.message_type.add(name=message)
        added.field.add(name=name, number=1, type=kind, label=field_type.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    request, reply = (
        message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"grpc.health.v1.{message.name}")
        )
        for message in file.message_type
    )
    return request, reply


_REQUEST, _REPLY = _message_classes()
CHECK: Method[Any] = Method("/grpc.health.v1.Health/Check", _REPLY)


def check_request(service: str) -> Message:
    """Asks about one service."""
    request: Message = _REQUEST(service=service)
    return request
