"""Which screens are one and the same to a split: a file, and what was made of it.

Knows a record's metadata and bytes; knows neither splits nor pixels.
"""

from __future__ import annotations

import hashlib

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
    origin = record.metadata.get(ORIGIN, hashlib.sha256(data).hexdigest())
    try:
        return int.from_bytes(bytes.fromhex(origin)[:8], "big", signed=True)
    except (TypeError, ValueError):
        raise ValueError(f"a record's {ORIGIN} is no sha256 in hex; leave it out") from None
