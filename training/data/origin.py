"""Which screens are one and the same to a split: a file, and what was made of it.

Knows a record's metadata and bytes; knows neither splits nor pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from training.data.records import Record

ORIGIN = "changed_from"
"""Where the metadata of a record with a changed screen holds the sha256 of the screen's file."""


def image_number(record: Record, data: bytes) -> int:
    """What splits must not cut, as a number: the file, or the one that its screen was made of.

    Args:
        record: Of the screen.
        data: The screen's file.

    Returns:
        The first 8 bytes of a sha256, with a sign.

    Raises:
        ValueError: The record names an origin that is no sha256.
    """
    return _number(record, hashlib.sha256(data).hexdigest())


def image_numbers(records: Iterable[Record], folder: Path) -> list[int]:
    """`image_number` of each record; a screen that several have is read once.

    Args:
        records: Whose images lie in the folder.
        folder: What image paths are relative to.
    """
    digests: dict[str, str] = {}
    numbers = []
    for record in records:
        if record.image not in digests:
            data = (folder / record.image).read_bytes()
            digests[record.image] = hashlib.sha256(data).hexdigest()
        numbers.append(_number(record, digests[record.image]))
    return numbers


def _number(record: Record, digest: str) -> int:
    origin = record.metadata.get(ORIGIN, digest)
    try:
        return int.from_bytes(bytes.fromhex(origin)[:8], "big", signed=True)
    except (TypeError, ValueError):
        raise ValueError(f"a record's {ORIGIN} is no sha256 in hex; leave it out") from None
