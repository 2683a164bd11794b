"""Looks into an ONNX file before onnxruntime does; knows its nesting, not its operators."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

# Message -> field number -> message, for every path of onnx.proto that leads to a tensor.
_NESTED: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL_DATA = 13
_DATA_LOCATION = 14


def holds_external_data(model: bytes) -> bool:
    """Whether any tensor of the model says that its values are in another file.

    Such a path may point anywhere, and what it points to is not covered by the bundle's digest.

    Args:
        model: A serialised ONNX ModelProto.

    Raises:
        ValueError: The bytes are no protobuf message.
    """
    try:
        return any(_external_tensors("model", model))
    except DecodeError as error:
        raise ValueError("the file is not an ONNX model") from error


def _external_tensors(kind: str, data: bytes) -> Iterator[bool]:
    # Parsed as a message without fields, every field is kept as an unknown one.
    parts: Any = UnknownFieldSet(Empty.FromString(data))  # iterable, which its stub leaves out
    for part in parts:
        if kind == "tensor":
            yield part.field_number == _EXTERNAL_DATA or (
                part.field_number == _DATA_LOCATION and part.data != 0
            )
        elif part.field_number in _NESTED[kind] and isinstance(part.data, bytes):
            yield from _external_tensors(_NESTED[kind][part.field_number], part.data)
