"""Counts of record files: labels, actions, sizes, and images that leak between files.

Knows records and images; judges nothing. Rows are read one at a time.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from training.data.images import image_size
from training.data.records import Record, Refusal, iter_records
from training.data.split import shared_content

UNLABELLED = "(none)"


@dataclass(frozen=True)
class FileStats:
    """What one file holds.

    Args:
        path: The file.
        records: How many were read.
        refused: Rows that were not.
        images: How many different images the records name.
        missing_images: Named images that are not there, or by their header are no screens.
        adapters: Label to records; `UNLABELLED` counts those without.
        task_types: Task type to records.
        actions: Action to expected calls.
        image_sizes: `WxH` as the files have it, to images.
        most_records_per_image: The largest number of records on one image.
        duplicate_ids: How many records repeat an earlier one's id.
        told_by_prompt: Share of the records whose label the same words elsewhere in the file
            give away; None without records.
        told_by_size: The same of the size of the image.
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
    told_by_prompt: float | None
    told_by_size: float | None


@dataclass(frozen=True)
class DataStats:
    """The files, and how many images each two of them share (splits must share none).

    Args:
        files: In the order in which they were given.
        shared_images: Images, by content, that are in two files or more, once for each pair.
    """

    files: tuple[FileStats, ...]
    shared_images: int


@dataclass
class _Counts:
    """What is counted while a file is read."""

    adapters: Counter[str] = field(default_factory=Counter)
    task_types: Counter[str] = field(default_factory=Counter)
    actions: Counter[str] = field(default_factory=Counter)
    per_image: Counter[str] = field(default_factory=Counter)
    sizes: dict[str, str] = field(default_factory=dict)
    # Digests stand for the texts: 8 bytes a record, and no prompt is kept.
    ids: set[bytes] = field(default_factory=set)
    by_prompt: dict[Hashable, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    by_size: dict[Hashable, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))


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
    for path in paths:
        files.append(_file_stats(path))
        if progress:
            progress(len(files), len(paths))
    # One file shares nothing with itself; its images need not be read.
    shared = shared_content(paths, strict=False) if len(paths) > 1 else {}
    return DataStats(tuple(files), sum(shared.values()))


def _file_stats(path: Path) -> FileStats:
    counts, refused = _Counts(), []
    for found in iter_records(path):
        if isinstance(found, Refusal):
            refused.append(found)
        else:
            _count(found, path.parent, counts)
    sizes = Counter(counts.sizes.values())
    missing = sizes.pop("", 0)
    records = counts.adapters.total()
    return FileStats(
        path=path,
        records=records,
        refused=tuple(refused),
        images=len(counts.per_image),
        missing_images=missing,
        adapters=counts.adapters,
        task_types=counts.task_types,
        actions=counts.actions,
        image_sizes=sizes,
        most_records_per_image=max(counts.per_image.values(), default=0),
        duplicate_ids=records - len(counts.ids),
        told_by_prompt=_told(counts.by_prompt),
        told_by_size=_told(counts.by_size),
    )


def _count(record: Record, folder: Path, counts: _Counts) -> None:
    label = record.adapter or UNLABELLED
    if record.image not in counts.sizes:
        counts.sizes[record.image] = _size(folder / record.image)
    counts.adapters[label] += 1
    counts.task_types[record.task_type or UNLABELLED] += 1
    counts.actions.update(call.action for call in record.calls)
    counts.per_image[record.image] += 1
    counts.ids.add(_short_digest(record.id))
    counts.by_prompt[_short_digest(record.prompt)][label] += 1
    counts.by_size[counts.sizes[record.image]][label] += 1


def _told(by_key: Mapping[Hashable, Counter[str]]) -> float | None:
    """How often the most frequent label of the *other* records with the same key is right.

    A record whose key no other one has is not told, and neither is one where labels tie.
    """
    right = total = 0
    for labels in by_key.values():
        total += labels.total()
        for label, count in labels.items():
            rivals = max((n for other, n in labels.items() if other != label), default=0)
            if count - 1 > rivals:
                right += count
    return right / total if total else None


def _short_digest(text: str) -> bytes:
    # Lone surrogates are legal in JSON and must not stop the count.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8]


def _size(path: Path) -> str:
    """`WxH` from the image's header; empty where there is none, or none of a screen."""
    try:
        width, height = image_size(path)
    except ValueError:
        return ""
    return f"{width}x{height}"
