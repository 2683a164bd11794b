"""Records of a JSONL file in balanced order, read from disk when their turn comes.

Knows adapters and task types; knows no model and no batch. In memory are 12 bytes a record.
"""

from __future__ import annotations

import json
import random
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from training.data.records import Record, record_from_json

NO_TASK = "(none)"
_T = TypeVar("_T")


class RecordIndex:
    """Where each record of a file begins, by adapter and task type.

    Args:
        path: A JSONL file, which must not change while the index is used.

    Raises:
        ValueError: There is no such file, or a row is no record with an adapter.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"{path} is no file: give a JSONL file")
        self.path = path
        self._offsets: dict[tuple[str, str], array[int]] = defaultdict(lambda: array("Q"))
        with path.open("rb") as lines:
            start = 0
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    record = self._record(line, f"line {number}")
                    key = (str(record.adapter), record.task_type or NO_TASK)
                    self._offsets[key].append(start)
                start += len(line)
        if not self._offsets:
            raise ValueError(f"{path} holds no record: give a file that does")

    @property
    def counts(self) -> Mapping[tuple[str, str], int]:
        """(adapter, task type) to records."""
        return {key: len(offsets) for key, offsets in self._offsets.items()}

    def __len__(self) -> int:
        return sum(self.counts.values())

    def balanced(self, *, seed: int) -> Iterator[Record]:
        """Yields records without end: every adapter as often, and each of its tasks as often.

        A stratum's records come in a new order each time around, and none comes again before all
        of them have come.

        Args:
            seed: Of the order. The same seed gives the same sequence.
        """
        with self.path.open("rb") as lines:
            for offset in self._balanced_offsets(seed):
                lines.seek(offset)
                yield self._record(lines.readline(), "a line")

    def _balanced_offsets(self, seed: int) -> Iterator[int]:
        rng = random.Random(seed)  # noqa: S311 - an order, no secret
        records = {key: _Rounds(offsets, rng) for key, offsets in self._offsets.items()}
        tasks: dict[str, list[str]] = defaultdict(list)
        for adapter, task in self._offsets:
            tasks[adapter].append(task)
        adapters = _Rounds(sorted(tasks), rng)
        turns = {adapter: _Rounds(sorted(of_it), rng) for adapter, of_it in tasks.items()}
        while True:
            adapter = adapters.next()
            yield records[adapter, turns[adapter].next()].next()

    def _record(self, line: bytes, where: str) -> Record:
        try:
            record = record_from_json(json.loads(line))
        except (ValueError, RecursionError) as error:
            reason = "it is not JSON" if isinstance(error, json.JSONDecodeError) else error
            raise ValueError(f"{self.path.name}, {where} is no record: {reason}") from None
        if record.adapter is None:
            raise ValueError(
                f"{self.path.name}, {where} has no adapter: label it (molora data label)"
            )
        return record


class _Rounds(Generic[_T]):
    """Gives items one at a time, all of them before any again, each round in a new order."""

    def __init__(self, items: Sequence[_T], rng: random.Random) -> None:
        self._items, self._rng = items, rng
        # 4 bytes an item, as long as a file has fewer than 4 billion records.
        self._order = array("I", range(len(items)))
        self._at = len(items)

    def next(self) -> _T:
        """The next item."""
        if self._at == len(self._order):
            self._rng.shuffle(self._order)
            self._at = 0
        self._at += 1
        return self._items[self._order[self._at - 1]]
