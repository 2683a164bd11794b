"""Files of rows to import, read anew on each pass; knows neither labels nor splits."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from training.data.cases import read_tests
from training.data.records import iter_rows

SOURCE = "source"
"""Where a record's metadata holds what it comes from."""
SKIPPED = -1
_ROWS_SHOWN = 10


@dataclass
class Skipped:
    """Rows that were left out for one reason: how many, and the numbers of the first ones."""

    count: int = 0
    rows: list[int] = field(default_factory=list)


@dataclass
class SourceReport:
    """What became of one file.

    Args:
        path: The file.
        name: Its folder of images in the data set, and the `SOURCE` of its rows.
        forms: `old`, `new` or `test` to the rows that are whole records with a label, or an agent's
            hint, and a screen.
        skipped: Reason to rows that were left out.
    """

    path: Path
    name: str
    forms: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, Skipped] = field(default_factory=dict)

    def skip(self, row: int, reason: str) -> None:
        """Counts a row that is left out."""
        skipped = self.skipped.setdefault(reason, Skipped())
        skipped.count += 1
        if len(skipped.rows) < _ROWS_SHOWN:
            skipped.rows.append(row)


@dataclass(frozen=True)
class Source:
    """A file of rows, none of which is held.

    Args:
        report: What becomes of it.
        is_test: Whether it is an array of test cases; else JSONL.
        taken: The number of each row's image, 4 bytes a row; `SKIPPED` where it is left out.
    """

    report: SourceReport
    is_test: bool
    taken: array[int]

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where its images may be: beside it, and for a test file in its folder's folder too."""
        folder = self.report.path.parent
        return (folder, folder.parent) if self.is_test else (folder,)

    def count(self) -> int:
        """How many rows there are."""
        return sum(1 for _ in self.rows())

    def rows(self) -> Iterator[tuple[int, object]]:
        """(row number, JSON object of a record, or the ValueError that stands for it)."""
        if not self.is_test:
            yield from iter_rows(self.report.path)
            return
        found = read_tests(self.report.path)
        reasons = {refusal.row: refusal.reason for refusal in found.refused}
        records = iter(found.records)
        for number in range(1, len(found.records) + len(reasons) + 1):
            reason = reasons.get(number)
            yield number, ValueError(reason) if reason else next(records).to_json()


def find_sources(paths: Sequence[Path]) -> list[Source]:
    """Lists the files to read.

    Args:
        paths: JSONL files, `test.json` files, or folders that hold them.

    Returns:
        The files, each under a name of its own.

    Raises:
        ValueError: A path holds nothing to read, or a file is named twice.
    """
    files: list[tuple[Path, str]] = []
    for path in paths:
        if path.is_dir():
            inside = [*sorted(path.glob("*.jsonl")), *sorted(path.glob("**/test.json"))]
            if not inside:
                raise ValueError(f"{path} holds neither *.jsonl nor a test.json: name the files")
            files += [(file, f"{path.resolve().name}-{file.stem}") for file in inside]
        elif path.suffix in (".jsonl", ".json"):
            files.append((path, path.stem))
        else:
            raise ValueError(f"{path} is neither a folder nor *.jsonl or *.json: name one of these")
    if len({file.resolve() for file, _ in files}) < len(files):
        raise ValueError("a file is named twice: name each once")
    used: Counter[str] = Counter()
    sources = []
    for file, name in files:
        used[name] += 1
        unique = name if used[name] == 1 else f"{name}-{used[name]}"
        sources.append(Source(SourceReport(file, unique), file.suffix == ".json", array("i")))
    return sources
