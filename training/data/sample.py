"""A balanced data set out of another one, its screens changed if that is wanted.

Knows records and files; what is drawn is `sampling`'s and what is changed `augment`'s to know. One
record and its screen are in memory at a time.
"""

from __future__ import annotations

import itertools
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from training.data.augment import augment_record
from training.data.images import find_image, open_image
from training.data.origin import ORIGIN, origin_of
from training.data.records import Record, check_new_folder, write_records
from training.data.sampling import NO_TASK, RecordIndex
from training.run_file import digest_of


@dataclass(frozen=True)
class Sample:
    """What was written.

    Args:
        path: The file of records.
        counts: Adapter to task type to records.
    """

    path: Path
    counts: Mapping[str, Mapping[str, int]]


def draw_sample(
    source: Path,
    out: Path,
    *,
    records: int,
    augment: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Sample:
    """Writes records of a file in balanced order: every adapter as often, and each of its tasks.

    A task with few records repeats them. Changed screens of one picture belong together: `ORIGIN`
    says which do, and a feature cache that is made of them is split by it.

    Args:
        source: JSONL file of labelled records, its images beside it: of one split, so that no
            screen that is measured on is learnt from.
        out: Folder, new or empty; gets a file of the same name and `images/`.
        records: How many to draw.
        augment: Change each screen at random; its answer moves along.
        seed: Of order and changes. The same arguments write the same data set.
        progress: Called with (records done, records in all).

    Raises:
        ValueError: A row is no record with an adapter, an image is missing or cannot be read,
            `records` is below 1, or `out` holds something.
    """
    if records < 1:
        raise ValueError(f"records is {records}: give 1 or more")
    check_new_folder(out)
    index = RecordIndex(source)
    counts: dict[str, Counter[str]] = {}

    def drawn() -> Iterator[Record]:
        for number, record in enumerate(itertools.islice(index.balanced(seed=seed), records)):
            counted = counts.setdefault(str(record.adapter), Counter())
            counted[record.task_type or NO_TASK] += 1
            path = find_image(record.image, [source.parent])
            # A record that comes again is another one.
            named = replace(record, id=f"{record.id}#{number}")
            if augment:
                yield _changed(named, path, out, number, seed)
            else:
                _copy(path, out / record.image)
                yield named
            if progress:
                progress(number + 1, records)

    path = out / source.name
    write_records(path, drawn())
    return Sample(path, counts)


def _changed(record: Record, path: Path, out: Path, number: int, seed: int) -> Record:
    rng = random.Random(f"{seed}/{number}")  # noqa: S311 - changes of pixels, no secret
    changed, image = augment_record(record, open_image(path), rng)
    name = f"images/{path.stem}_{number:06}.png"
    (out / "images").mkdir(parents=True, exist_ok=True)
    image.save(out / name)
    origin = origin_of(record, digest_of(path))
    return replace(changed, image=name, metadata={**changed.metadata, ORIGIN: origin})


def _copy(path: Path, target: Path) -> None:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
