"""Reads a safetensors file into private bytes and checks it before anything parses it.

Knows files and the safetensors container; does not know adapters or models.

What is checked is what is used: the file is read once, whole, and hash, header and tensors all come
from those bytes. Whatever happens to the file afterwards changes nothing.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from service_chassis.errors import DataLoss, FailedPrecondition, InvalidArgument

MAX_FILE_BYTES = 4 * 2**30
MAX_HEADER_BYTES = 8 * 2**20
MAX_TENSORS = 20_000
_DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_LENGTH_BYTES = 8


def read_private(path: Path, max_bytes: int) -> bytes:
    """The whole content of a regular file.

    Args:
        path: The file.
        max_bytes: Larger files are refused unread.

    Raises:
        FailedPrecondition: ADAPTER_FILE_MISSING.
        InvalidArgument: NOT_A_FILE (a directory, pipe or device), ADAPTER_TOO_LARGE.
        DataLoss: ADAPTER_CHANGED, the file was written to while it was read.
    """
    try:
        # Without O_NONBLOCK opening a pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FailedPrecondition(
            "ADAPTER_FILE_MISSING",
            "The directory lacks an adapter file; it needs both as PEFT writes them.",
            file=path.name,
        ) from error
    except OSError as error:
        raise _not_a_file(path) from error
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode):
        os.close(descriptor)  # open() below would refuse a directory and leave it open
        raise _not_a_file(path)
    with open(descriptor, "rb") as file:
        if before.st_size > max_bytes:
            raise InvalidArgument(
                "ADAPTER_TOO_LARGE", "An adapter file is too large; save less.", max_bytes=max_bytes
            )
        data = file.read(before.st_size + 1)
        after = os.fstat(descriptor)
    if len(data) != before.st_size or after.st_mtime_ns != before.st_mtime_ns:
        raise DataLoss(
            "ADAPTER_CHANGED",
            "An adapter file was written while it was read; move complete files into place.",
        )
    return data


def parse_tensors(data: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file.

    Args:
        data: The whole file.

    Returns:
        Tensors by name, on the CPU, each a copy of its bytes.

    Raises:
        InvalidArgument: HEADER_TOO_LARGE, TOO_MANY_TENSORS, UNSUPPORTED_DTYPE.
        DataLoss: CORRUPT_ADAPTER; the container is cut short, has bytes left over, or its header
            does not describe its bytes exactly.
    """
    check_container(data)
    try:
        return safetensors.torch.load(data)
    except Exception as error:  # The library has no error type of its own that covers all.
        raise corrupt() from error


def check_container(data: bytes) -> None:
    """Checks header and offsets against the bytes; raises as `parse_tensors` does."""
    if len(data) < _LENGTH_BYTES:
        raise corrupt()
    header_bytes = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise InvalidArgument(
            "HEADER_TOO_LARGE",
            "The safetensors header is too large; save the LoRA weights alone.",
            max_bytes=MAX_HEADER_BYTES,
        )
    start = _LENGTH_BYTES + header_bytes
    if start > len(data):
        raise corrupt()
    header = _parse_header(data[_LENGTH_BYTES:start])
    if len(header) > MAX_TENSORS:
        raise InvalidArgument(
            "TOO_MANY_TENSORS",
            "The file holds too many tensors; save the LoRA weights alone.",
            max_tensors=MAX_TENSORS,
        )
    at = 0
    for begin, end in sorted(_span(entry) for entry in header.values()):
        if begin != at:
            raise corrupt()
        at = end
    if start + at != len(data):
        raise corrupt()


def corrupt() -> DataLoss:
    """The error for bytes that are not a whole safetensors file."""
    return DataLoss("CORRUPT_ADAPTER", "The adapter's weights are damaged; copy them again.")


def _not_a_file(path: Path) -> InvalidArgument:
    return InvalidArgument(
        "NOT_A_FILE",
        "An adapter file is not a readable regular file; put a copy there.",
        file=path.name,
    )


def _parse_header(data: bytes) -> dict[str, Any]:
    try:
        header = json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise corrupt() from error
    if not isinstance(header, dict):
        raise corrupt()
    header.pop("__metadata__", None)
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _span(entry: object) -> tuple[int, int]:
    """Begin and end of a tensor's bytes, consistent with its dtype and shape."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise corrupt()
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (isinstance(dtype, str) and _is_counts(shape) and _is_counts(offsets)):
        raise corrupt()
    if dtype not in _DTYPE_BYTES:
        raise InvalidArgument(
            "UNSUPPORTED_DTYPE", "Adapter weights are not float32, float16 or bfloat16; save so."
        )
    size = _DTYPE_BYTES[dtype]
    for side in shape:
        size *= side
    if len(offsets) != 2 or offsets[1] - offsets[0] != size:
        raise corrupt()
    return offsets[0], offsets[1]


def _is_counts(value: object) -> bool:
    if not isinstance(value, list) or len(value) > 8:
        return False
    return all(type(item) is int and 0 <= item <= MAX_FILE_BYTES for item in value)
