"""Counts of record files: labels, actions, sizes, and images that leak between files.

Knows records and image headers; judges nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from training.data.records import Record, Refusal, read_records

UNLABELLED = "(none)"


@dataclass(frozen=True)
class FileStats:
    """What one file holds.

    Args:
        path: The file.
        records: How many were read.
        refused: Rows that were not.
        images: How many different images the records name.
        missing_images: Named images that cannot be opened.
        adapters: Label to records; `UNLABELLED` counts those without.
        task_types: Task type to records.
        actions: Action to expected calls.
        image_sizes: `WxH` as the files have it, to images.
        most_records_per_image: The largest number of records on one image.
        duplicate_ids: How many records repeat an earlier one's id.
    """

    path: Path
    records: int
    refused: tuple[Refusal, ...]
    images: int
    missing_images: int
    adapters: Mapping[str, int]
    task_types: Mapping[str, int]
    actions: Mapping[str, int]
    image_sizes: Mapping[str, int]
    most_records_per_image: int
    duplicate_ids: int


@dataclass(frozen=True)
class DataStats:
    """The files, and how many images two or more of them share (a split must share none)."""

    files: tuple[FileStats, ...]
    shared_images: int


def collect_stats(
    paths: Sequence[Path], *, progress: Callable[[int, int], None] | None = None
) -> DataStats:
    """Counts record files.

    Args:
        paths: JSONL files.
        progress: Called with (files done, files in all).

    Returns:
        The counts of each, and the images they share.

    Raises:
        ValueError: A file does not exist.
    """
    files: list[FileStats] = []
    holders: Counter[Path] = Counter()
    for path in paths:
        found = read_records(path)
        images = {record.image for record in found.records}
        holders.update({(path.parent / image).resolve() for image in images})
        files.append(_file_stats(path, found.records, found.refused, images))
        if progress:
            progress(len(files), len(paths))
    return DataStats(tuple(files), sum(count > 1 for count in holders.values()))


def _file_stats(
    path: Path, records: Sequence[Record], refused: tuple[Refusal, ...], images: set[str]
) -> FileStats:
    sizes = Counter(_size(path.parent / image) for image in images)
    missing = sizes.pop("", 0)
    per_image = Counter(record.image for record in records)
    return FileStats(
        path=path,
        records=len(records),
        refused=refused,
        images=len(images),
        missing_images=missing,
        adapters=Counter(record.adapter or UNLABELLED for record in records),
        task_types=Counter(record.task_type or UNLABELLED for record in records),
        actions=Counter(call.action for record in records for call in record.calls),
        image_sizes=sizes,
        most_records_per_image=max(per_image.values(), default=0),
        duplicate_ids=len(records) - len({record.id for record in records}),
    )


def _size(path: Path) -> str:
    """`WxH` from the image's header; empty where there is none to read."""
    try:
        with Image.open(path) as image:
            return f"{image.width}x{image.height}"
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return ""
