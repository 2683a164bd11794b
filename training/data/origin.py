"""Which screens are one and the same to a split: a file, and what was made of it.

Knows a record's metadata and bytes; knows neither splits nor pixels.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from training.data.records import Record
from training.run_file import digest_of

ORIGIN = "changed_from"
"""Where the metadata of a record with a changed screen holds the sha256 of the screen's file."""
_SHA256 = re.compile(r"[0-9A-Fa-f]{64}")


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


def origin_of(record: Record, digest: str) -> str:
    """sha256 (hex) of the file that a record's screen was made of, or of the screen's own.

    Args:
        record: Of the screen.
        digest: sha256 (hex) of the screen's file.

    Raises:
        ValueError: The record names an origin that is no sha256.
    """
    return stated_origin(record) or digest


def stated_origin(record: Record) -> str | None:
    """sha256 (hex) of the file that a record says its screen was made of; None if it says nothing.

    Raises:
        ValueError: What it says is no sha256.
    """
    if ORIGIN not in record.metadata:
        return None
    origin = record.metadata[ORIGIN]
    if not (isinstance(origin, str) and _SHA256.fullmatch(origin)):
        raise ValueError(f"a record's {ORIGIN} is no sha256 in hex; leave it out")
    return origin.lower()


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
            digests[record.image] = digest_of(folder / record.image)
        numbers.append(_number(record, digests[record.image]))
    return numbers


def _number(record: Record, digest: str) -> int:
    return int.from_bytes(bytes.fromhex(origin_of(record, digest))[:8], "big", signed=True)
