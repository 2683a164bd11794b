"""The user's datasets, as they are, made into one data set: labelled, split by image, checked.

Knows files and rules; changes no conversation. What is refused is counted with its reason.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data.imported_images import Images
from training.data.labels import Rule
from training.data.records import Record, check_new_folder, write_rows
from training.data.sources import SKIPPED, SOURCE, Source, SourceReport, find_sources
from training.data.split import SHARES, TRAIN, check_leaks, check_shares

TEST, HINTED = "test", "hinted"


@dataclass(frozen=True)
class Imported:
    """What was written.

    Args:
        sources: Each file that was read.
        records: Split to records written.
        images: Split to different images.
        adapters: Split to label to records.
    """

    sources: tuple[SourceReport, ...]
    records: Mapping[str, int]
    images: Mapping[str, int]
    adapters: Mapping[str, Mapping[str, int]]


def import_data(
    paths: Sequence[Path],
    out: Path,
    *,
    rules: Sequence[Rule] = (),
    shares: Mapping[str, float] = SHARES,
    by_source: bool = False,
    drop_tested: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Imported:
    """Reads record and test files and writes `<split>.jsonl`, `test.jsonl` and their images.

    Rows that no label rule matches, but whose metadata says what an agent took them for, go to
    `hinted.jsonl`, which stage 1 can learn from beside `train.jsonl`. Whatever an agent says, of a
    labelled row too, must name a label that training rows have. Each row's metadata says which
    source it is from. Rows are streamed: in memory are 4 bytes a row, one entry an image, and one
    test file.

    Args:
        paths: JSONL files, `test.json` files, or folders that hold them.
        out: Folder, new or empty.
        rules: Further label rules, after the built-in ones.
        shares: Split to its part of the images; test files are a split of their own.
        by_source: Keep each file's images together in one split.
        drop_tested: Leave out records whose image is in a test file; else that is an error.
        seed: Of the split.
        progress: Called with (rows read and records checked, twice the rows in all).

    Returns:
        What was written and what was skipped, with reasons.

    Raises:
        LeakError: A test file and a record file share an image.
        ValueError: A path holds nothing to read, nothing is left, or `out` holds something.
    """
    check_shares(shares)
    if taken := {TEST, HINTED} & shares.keys():
        raise ValueError(f"{taken.pop()} is a split of its own: name the share otherwise")
    check_new_folder(out)
    sources = find_sources(paths)
    images = Images(rules)
    rows = sum(map(Source.count, sources)) if progress else 0
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, 2 * rows)

    for source in sources:
        for _ in images.scan(source):
            advance()
    images.keep_apart(sources, drop_tested=drop_tested)
    _check_anything_is_left(sources)
    images.check_labels()
    splits = images.split(shares, by_source=by_source, seed=seed)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        names = [name for name in shares if name in splits.values()]
        tested = [TEST] if any(source.is_test for source in sources) else []
        hinted = [HINTED] if images.any_hinted else []
        imported = _write(partial, sources, images, splits, [*names, *tested, *hinted])
        _check_anything_is_left(sources)
        files = {name: partial / f"{name}.jsonl" for name in imported.records}
        learnt = [file for name, file in files.items() if name in (TRAIN, HINTED)]
        done = rows
        check_leaks(list(files.values()), together=learnt, advance=advance)
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if progress:
        # What was left out had nothing to be checked.
        progress(2 * rows, 2 * rows)
    return imported


def _check_anything_is_left(sources: Sequence[Source]) -> None:
    if all(number == SKIPPED for source in sources for number in source.taken):
        reasons: Counter[str] = Counter()
        for source in sources:
            reasons.update({reason: rows.count for reason, rows in source.report.skipped.items()})
        most = "".join(f", {n} of them because {why}" for why, n in reasons.most_common(1))
        raise ValueError(f"none of {reasons.total()} rows can be imported{most}")


def source_of(record: Record) -> str | None:
    """What a record's metadata says that it comes from.

    Of one that was imported before sources were written, that is the second part of its image's
    path, which is the first source that had the image; None where that says nothing either.
    """
    stated = record.metadata.get(SOURCE)
    if stated is not None:
        return str(stated)
    parts = record.image.split("/")
    return parts[1] if len(parts) > 2 and parts[0] == "images" else None


def _write(
    out: Path, sources: Sequence[Source], images: Images, splits: Mapping[int, str],
    names: Sequence[str],
) -> Imported:  # fmt: skip
    records: dict[str, int] = {}
    held: dict[str, set[int]] = {}
    adapters: dict[str, Counter[str]] = {}
    for name in names:
        held[name], adapters[name] = set(), Counter()
        rows = _rows_of(name, sources, images, splits, held[name], adapters[name])
        records[name] = write_rows(out / f"{name}.jsonl", rows)
    for number in set().union(*held.values()):
        image = images.all[number]
        target = out / image.target
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image.path, target)
    counts = {name: len(numbers) for name, numbers in held.items()}
    return Imported(tuple(source.report for source in sources), records, counts, adapters)


def _rows_of(
    name: str, sources: Sequence[Source], images: Images, splits: Mapping[int, str],
    held: set[int], adapters: Counter[str],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The rows of one split, with label, source and the image's new place; else unchanged.

    A source that a row states itself stays. A row that is left out is taken no longer.
    """
    for source in sources:
        if source.is_test != (name == TEST):
            continue
        for number, row in source.rows():
            image = source.taken[number]
            if image == SKIPPED or not isinstance(row, dict):
                continue
            split = TEST if source.is_test else splits.get(image)
            if split != name and name != HINTED:
                continue
            label = images.label(row)
            if name != (HINTED if label is None else split):
                continue
            try:
                if label is None and split != TRAIN:
                    raise ValueError(f"only an agent names it, and its image is in {split}")
                images.check_hint(row)
            except ValueError as error:
                source.report.skip(number, str(error))
                source.taken[number] = SKIPPED
                continue
            held.add(image)
            metadata = dict(row.get("metadata", {}))
            if metadata.get(SOURCE) is None:
                metadata[SOURCE] = source.report.name
            moved = {**row, "image": images.all[image].target, "metadata": metadata}
            if label is None:
                yield moved
            else:
                adapters[label] += 1
                yield {**moved, "adapter": label}
