"""The different images of an import: who has them, what their rows are called, where they go.

Knows rows, label rules and splits; writes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from training.data.hints import AGENT_EXPERT, read_hint, stated_hint
from training.data.images import content_digest, find_image
from training.data.labels import Rule, judge
from training.data.origin import origin_of
from training.data.records import Record, record_from_json
from training.data.sources import SKIPPED, Source
from training.data.split import (
    TRAIN,
    LeakError,
    connected,
    split_by_image,
    split_by_source,
)
from training.run_file import digest_of

_UNMATCHED = "no label rule matches: give the row an `adapter`, or a further rule"


@dataclass
class _Image:
    """One picture: where it was met first, what its records are, and of which files it was made.

    Args:
        said: Label of a record and the expert that an agent named, if any did.
    """

    path: Path
    target: str
    labels: Counter[str] = field(default_factory=Counter)
    said: set[tuple[str, str | None]] = field(default_factory=set)
    sources: set[str] = field(default_factory=set)
    origins: set[str] = field(default_factory=set)
    hinted: bool = False
    tested: bool = False
    trained: bool = False


class Images:
    """The different images of all sources, and which rows are taken."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._numbers: dict[bytes, int] = {}
        self._digests: dict[Path, tuple[bytes, str] | str] = {}
        self._targets: set[str] = set()
        self._learnt: list[str] = []
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
        """Refuses what an agent says of an expert that nobody learns; after `split`.

        Raises:
            ValueError: It does.
        """
        read_hint(row.get("metadata", {}), self._learnt)

    @property
    def any_hinted(self) -> bool:
        """Whether there is an image that could be learnt from by an agent's word."""
        return any(image.hinted and not image.tested for image in self.all)

    def check_labels(self) -> None:
        """Raises ValueError where agents named rows to learn from, and no such row has a label."""
        if self.any_hinted and not any(image.labels and not image.tested for image in self.all):
            raise ValueError(
                "no row to learn from has a label, and an agent's hints alone cannot be checked: "
                "label some"
            )

    def _note(self, source: Source, record: Record, label: str | None) -> int:
        expert, _ = stated_hint(record.metadata)
        path = find_image(record.image, source.folders)
        digest, file = self._digest(path)
        origin = origin_of(record, file)
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
            image.said.add((label, expert))
        image.sources.add(name)
        image.origins.add(origin)
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

    def _digest(self, path: Path) -> tuple[bytes, str]:
        if path not in self._digests:
            try:
                self._digests[path] = content_digest(path), digest_of(path)
            except ValueError as error:
                self._digests[path] = str(error)
        digest = self._digests[path]
        if isinstance(digest, str):
            raise ValueError(digest)
        return digest

    def keep_apart(self, sources: Sequence[Source], *, drop_tested: bool) -> None:
        """Leaves out the records on images of test files, or fails because of them."""
        for group in self._groups(self._numbers):
            images = [self.all[self._numbers[digest]] for digest in group]
            if any(image.tested for image in images):
                for image in images:
                    image.tested = True
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
        splits = self._split(shares, by_source=by_source, seed=seed)
        train = [n for n, name in splits.items() if name == TRAIN and self.all[n].labels]
        # Without a split of that name, as of test files alone, they are those of all rows.
        self._learnt = self._labels(train or range(len(self.all)))
        return splits

    def _split(self, shares: Mapping[str, float], *, by_source: bool, seed: int) -> dict[int, str]:
        free = {
            digest: self.all[number]
            for digest, number in self._numbers.items()
            if not self.all[number].tested
        }
        if not free:
            return {}
        labelled = {d: image for d, image in free.items() if image.labels}
        groups = self._groups(free)
        if by_source:
            sources = {d: image.sources | image.origins for d, image in labelled.items()}
            names = split_by_source(sources, shares)
        else:
            labels = {group[0]: label for group in groups if (label := _label(free, group))}
            chosen = split_by_image(labels, shares, seed=seed)
            names = {d: chosen[group[0]] for group in groups if group[0] in chosen for d in group}
        split_of = {source: names[d] for d, image in labelled.items() for source in image.sources}
        # What nobody labelled can only be learnt from, unless its source or origin is held out.
        for group in groups:
            for digest in set(group) - names.keys():
                known = free[digest].sources & split_of.keys() if by_source else ()
                beside = {names[other] for other in group if other in names}
                held_out = sorted(({split_of[source] for source in known} | beside) - {TRAIN})
                names[digest] = held_out[0] if held_out else TRAIN
        return {self._numbers[digest]: name for digest, name in names.items()}

    def _labels(self, numbers: Iterable[int]) -> list[str]:
        """Labels of the rows of some images; a row whose hint names no such label is none."""
        said = {pair for number in numbers for pair in self.all[number].said}
        while True:
            labels = {label for label, _ in said}
            read = {(label, expert) for label, expert in said if expert in (None, *labels)}
            if read == said:
                return sorted(labels)
            said = read

    def _groups(self, digests: Iterable[bytes]) -> list[list[bytes]]:
        """Images that were made of one another, by content digest; in order."""
        origins = {digest: self.all[self._numbers[digest]].origins for digest in digests}
        return [sorted(group) for group in connected(origins)]


def _label(images: Mapping[bytes, _Image], group: Sequence[bytes]) -> str | None:
    """That of most of the records of a group's images; None if nobody labelled any."""
    labels = sum((images[digest].labels for digest in group), Counter[str]())
    return labels.most_common(1)[0][0] if labels else None
