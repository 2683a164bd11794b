"""Reads TensorBoard's event files: length, checksum, message, checksum, again and again."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event


def read_events(folder: Path) -> Iterator[Any]:
    """All events of a folder, file by file."""
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            yield Event.FromString(data[at + 12 : at + 12 + length])
            at += 12 + length + 4


def read_scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Name to step to value; a later start takes back what was told of its steps."""
    found: dict[str, dict[int, float]] = {}
    for event in read_events(folder):
        if event.session_log.status == event.session_log.START:
            for steps in found.values():
                for step in [step for step in steps if step >= event.step]:
                    del steps[step]
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found
