"""The user's datasets, as they are, made into one data set: labelled, split by image, checked.

Knows files and rules; changes no conversation. What is refused is counted with its reason.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from training.data.hints import AGENT_EXPERT, read_hint
from training.data.images import content_digest, find_image
from training.data.labels import Rule, judge
from training.data.records import (
    Record,
    check_new_folder,
    record_from_json,
    write_rows,
)
from training.data.sources import SKIPPED, Source, SourceReport, find_sources
from training.data.split import (
    SHARES,
    TRAIN,
    LeakError,
    check_leaks,
    check_shares,
    split_by_image,
    split_by_source,
)

TEST, HINTED = "test", "hinted"
_UNMATCHED = "no label rule matches: give the row an `adapter`, or a further rule"


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


@dataclass
class _Image:
    """One picture: where it was met first, and what its records are."""

    path: Path
    target: str
    labels: Counter[str] = field(default_factory=Counter)
    sources: set[str] = field(default_factory=set)
    hinted: bool = False
    tested: bool = False
    trained: bool = False


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
    `hinted.jsonl`, which stage 1 can learn from beside `train.jsonl`. Rows are streamed: in memory
    are 4 bytes a row, one entry an image, and one test file.

    Args:
        paths: JSONL files, `test.json` files, or folders that hold them.
        out: Folder, new or empty.
        rules: Further label rules, after the built-in ones.
        shares: Split to its part of the images; test files are a split of their own.
        by_source: Keep each file's images together in one split.
        drop_tested: Leave out records whose image is in a test file; else that is an error.
        seed: Of the split.
        progress: Called with (rows read, rows in all).

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
    images = _Images(rules)
    done, total = 0, sum(map(Source.count, sources)) if progress else 0
    for source in sources:
        for _ in images.scan(source):
            done += 1
            if progress:
                progress(done, total)
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
        files = {name: partial / f"{name}.jsonl" for name in imported.records}
        learnt = [file for name, file in files.items() if name in (TRAIN, HINTED)]
        check_leaks(list(files.values()), together=learnt)
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return imported


def _check_anything_is_left(sources: Sequence[Source]) -> None:
    if all(number == SKIPPED for source in sources for number in source.taken):
        reasons: Counter[str] = Counter()
        for source in sources:
            reasons.update({reason: rows.count for reason, rows in source.report.skipped.items()})
        most = "".join(f", {n} of them because {why}" for why, n in reasons.most_common(1))
        raise ValueError(f"none of {reasons.total()} rows can be imported{most}")


def source_of(record: Record) -> str | None:
    """The source of an imported record, which is the second part of its image's path."""
    parts = record.image.split("/")
    return parts[1] if len(parts) > 2 and parts[0] == "images" else None


class _Images:
    """The different images of all sources, and which rows are taken."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._numbers: dict[bytes, int] = {}
        self._digests: dict[Path, bytes | str] = {}
        self._targets: set[str] = set()
        self._labels: set[str] = set()
        self.all: list[_Image] = []

    def scan(self, source: Source) -> Iterator[int]:
        """Checks every row, labels it, and takes note of its image; yields after each."""
        for number, row in source.rows():
            source.taken.extend([SKIPPED] * (number + 1 - len(source.taken)))
            try:
                if isinstance(row, ValueError):
                    raise row
                record = record_from_json(row)
                label = self.label(row)
                if label is None and source.is_test:
                    raise ValueError(_UNMATCHED)
                source.taken[number] = self._note(source, record, label)
            except ValueError as error:
                source.report.skip(number, str(error))
            else:
                form = "old" if record.system is not None else "new"
                source.report.forms["test" if source.is_test else form] += 1
            yield number

    def label(self, row: Any) -> str | None:
        """The label that the rules give; None where only an agent has a name for the row.

        Raises:
            ValueError: They give none, and there is no agent's, or they contradict each other.
        """
        verdict = judge(row, self._rules)
        if verdict.contradicts:
            raise ValueError("label rules contradict each other: give the row an `adapter`")
        if verdict.label is None and row.get("metadata", {}).get(AGENT_EXPERT) is None:
            raise ValueError(_UNMATCHED)
        return verdict.label

    def check_hint(self, row: Mapping[str, Any]) -> None:
        """Refuses what an agent says of an expert that no row is labelled with.

        Raises:
            ValueError: It does, or it is no hint.
        """
        read_hint(row["metadata"], sorted(self._labels))

    @property
    def any_hinted(self) -> bool:
        """Whether there is an image that could be learnt from by an agent's word."""
        return any(image.hinted and not image.tested for image in self.all)

    def check_labels(self) -> None:
        """Raises ValueError where no row has a label."""
        if not self._labels:
            raise ValueError(
                "no row has a label, and an agent's hints alone cannot be checked: label some"
            )

    def _note(self, source: Source, record: Record, label: str | None) -> int:
        path = find_image(record.image, source.folders)
        digest = self._digest(path)
        name = source.report.name
        if digest not in self._numbers:
            self._numbers[digest] = len(self.all)
            self.all.append(_Image(path, self._target(name, record.image, digest)))
        number = self._numbers[digest]
        image = self.all[number]
        if label is None:
            image.hinted = True
        else:
            image.labels[label] += 1
            self._labels.add(label)
        image.sources.add(name)
        image.tested |= source.is_test
        image.trained |= not source.is_test
        return number

    def _target(self, source: str, image: str, digest: bytes) -> str:
        """Where the image goes: its own path, unless another picture has it already."""
        parts = PurePosixPath(image.removeprefix("images/"))
        target = f"images/{source}/{parts}"
        if target in self._targets:
            target = f"images/{source}/{digest.hex()}/{parts.name}"
        self._targets.add(target)
        return target

    def _digest(self, path: Path) -> bytes:
        if path not in self._digests:
            try:
                self._digests[path] = content_digest(path)
            except ValueError as error:
                self._digests[path] = str(error)
        digest = self._digests[path]
        if isinstance(digest, str):
            raise ValueError(digest)
        return digest

    def keep_apart(self, sources: Sequence[Source], *, drop_tested: bool) -> None:
        """Leaves out the records on images of test files, or fails because of them."""
        leaked = sum(image.tested and image.trained for image in self.all)
        if leaked and not drop_tested:
            raise LeakError(
                f"{leaked} images of test files are in record files too, by content: "
                "take them out of either, or leave out their records (--drop-tested)"
            )
        for source in sources:
            for row, number in enumerate(source.taken):
                if not source.is_test and number != SKIPPED and self.all[number].tested:
                    source.taken[row] = SKIPPED
                    source.report.skip(row, "its image is in a test file")

    def split(self, shares: Mapping[str, float], *, by_source: bool, seed: int) -> dict[int, str]:
        """Image number to split; images of test files are in none."""
        free = {
            digest: self.all[number]
            for digest, number in self._numbers.items()
            if not self.all[number].tested
        }
        if not free:
            return {}
        labelled = {d: image for d, image in free.items() if image.labels}
        if by_source:
            sources = {digest: image.sources for digest, image in labelled.items()}
            names = split_by_source(sources, shares)
        else:
            labels = {d: image.labels.most_common(1)[0][0] for d, image in labelled.items()}
            names = split_by_image(labels, shares, seed=seed)
        split_of = {source: names[d] for d, image in labelled.items() for source in image.sources}
        # What nobody labelled can only be learnt from, unless its source is held out.
        for digest in free.keys() - labelled.keys():
            known = free[digest].sources & split_of.keys() if by_source else ()
            held_out = sorted({split_of[source] for source in known} - {TRAIN})
            names[digest] = held_out[0] if held_out else TRAIN
        return {self._numbers[digest]: name for digest, name in names.items()}


def _write(
    out: Path, sources: Sequence[Source], images: _Images, splits: Mapping[int, str],
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
    name: str, sources: Sequence[Source], images: _Images, splits: Mapping[int, str],
    held: set[int], adapters: Counter[str],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The rows of one split, with their label and the image's new place; else unchanged."""
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
            moved = {**row, "image": images.all[image].target}
            if label is not None and split == name:
                held.add(image)
                adapters[label] += 1
                yield {**moved, "adapter": label}
            elif label is None and name == HINTED:
                try:
                    if split != TRAIN:
                        raise ValueError(f"only an agent names it, and its image is in {split}")
                    images.check_hint(row)
                except ValueError as error:
                    source.report.skip(number, str(error))
                else:
                    held.add(image)
                    yield moved
