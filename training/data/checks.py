"""Faults of records that would end hours of work, looked for before the first of them.

Knows records and the headers of their screens; decodes no pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from training.data.hints import read_hint
from training.data.images import find_image, image_size
from training.data.origin import stated_origin
from training.data.records import Record


def check_records(records: Sequence[Record], folder: Path) -> None:
    """Looks at the screens of records, each once, and at what they say that these were made of.

    Args:
        records: Of which something is to be made.
        folder: What image paths are relative to.

    Raises:
        ValueError: An image is missing or its header cannot be read, or an origin is no sha256; how
            many records have such a fault, and the id and image of the first.
    """
    seen: set[str] = set()

    def check(record: Record) -> None:
        stated_origin(record)
        if record.image not in seen:
            image_size(find_image(record.image, [folder]))
            seen.add(record.image)

    _check_each(records, check)


def check_hints(records: Sequence[Record], experts: Sequence[str]) -> None:
    """Looks at what agents said of records.

    Args:
        records: With or without a hint.
        experts: Names of the labels.

    Raises:
        ValueError: A hint cannot be read; how many, and the id and image of the first.
    """
    _check_each(records, lambda record: read_hint(record.metadata, experts))


def _check_each(records: Sequence[Record], check: Callable[[Record], object]) -> None:
    faults = []
    for record in records:
        try:
            check(record)
        except ValueError as error:
            faults.append((record, error))
    if faults:
        first, why = faults[0]
        raise ValueError(
            f"{len(faults)} of {len(records)} records cannot be used, the first is {first.id} "
            f"with {first.image}: {why}"
        )
