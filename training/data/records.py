"""Records as JSONL, in the old and the new form; opens no image."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from training.data.calls import ToolCall, format_calls, read_calls

IMAGE_MARK = "<image>\n"
_FORMS = (("system", "human", "gpt"), ("human", "gpt"))


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation: `system`, `human` or `gpt`, and its text as it was read."""

    role: str
    value: str


@dataclass(frozen=True)
class Record:
    """One instruction on one image and the calls that answer it.

    Args:
        id: Unique in its file.
        image: Path relative to the file that holds the record, with forward slashes.
        turns: [system,] human, gpt.
        metadata: Task type, real coordinates and extras; no ground truth about pixels.
        adapter: The expert's name, None while nobody has labelled the record.

    Raises:
        ValueError: A part breaks the format; the text names the part, never its content.
    """

    id: str
    image: str
    turns: tuple[Turn, ...]
    metadata: Mapping[str, Any]
    adapter: str | None = None

    def __post_init__(self) -> None:
        path = PurePosixPath(self.image)
        if not self.image or path.is_absolute() or ".." in path.parts or "\\" in self.image:
            raise ValueError("`image` must be one relative path without `..`")
        if tuple(turn.role for turn in self.turns) not in _FORMS:
            raise ValueError("`conversations` must be [system,] human, gpt")
        if not self.turns[-2].value.startswith(IMAGE_MARK):
            raise ValueError("the human turn must begin with `<image>` and a newline")
        read_calls(self.turns[-1].value)
        read_tolerance(self.metadata.get("tolerance"))

    @property
    def system(self) -> str | None:
        """The system prompt the record carries, if it is of the old form."""
        return self.turns[0].value if len(self.turns) == 3 else None

    @property
    def prompt(self) -> str:
        """The instruction without the image mark."""
        return self.turns[-2].value[len(IMAGE_MARK) :]

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """What the expert must answer."""
        return read_calls(self.turns[-1].value)

    @property
    def task_type(self) -> str | None:
        """From the metadata."""
        value = self.metadata.get("task_type")
        return value if isinstance(value, str) else None

    @property
    def tolerance(self) -> tuple[float, float] | None:
        """(x, y) in thousandths, None where the record leaves it to the scoring's default."""
        return read_tolerance(self.metadata.get("tolerance"))

    def labelled(self, adapter: str) -> Record:
        """The same record with an expert's name."""
        return replace(self, adapter=adapter)

    def to_json(self) -> dict[str, Any]:
        """The record as one object of a JSONL file."""
        row: dict[str, Any] = {
            "id": self.id,
            "image": self.image,
            "conversations": [{"from": turn.role, "value": turn.value} for turn in self.turns],
            "metadata": dict(self.metadata),
        }
        return row if self.adapter is None else {**row, "adapter": self.adapter}


@dataclass(frozen=True)
class Refusal:
    """A row that was skipped: its number from 1 and the reason, without its content."""

    row: int
    reason: str


@dataclass(frozen=True)
class RecordFile:
    """What a file held: the records, and which rows were refused and why."""

    records: tuple[Record, ...]
    refused: tuple[Refusal, ...]


def new_record(
    record_id: str, image: str, prompt: str, calls: Iterable[ToolCall], metadata: Mapping[str, Any]
) -> Record:
    """Builds a record of the new form, without an adapter."""
    turns = (Turn("human", IMAGE_MARK + prompt), Turn("gpt", format_calls(calls)))
    return Record(record_id, image, turns, metadata)


def record_from_json(row: object) -> Record:
    """Reads one object of a JSONL file.

    Raises:
        ValueError: A part is missing or malformed.
    """
    if not isinstance(row, dict):
        raise ValueError("a row must be a JSON object")
    conversations, metadata = row.get("conversations"), row.get("metadata", {})
    if not (isinstance(row.get("id"), str) and isinstance(row.get("image"), str)):
        raise ValueError("`id` and `image` must be strings")
    if not (isinstance(conversations, list) and isinstance(metadata, dict)):
        raise ValueError("`conversations` must be a list and `metadata` an object")
    adapter = row.get("adapter")
    if not (adapter is None or isinstance(adapter, str)):
        raise ValueError("`adapter` must be a name: a number is another expert in another source")
    turns = tuple(_turn_from_json(turn) for turn in conversations)
    return Record(row["id"], row["image"], turns, metadata, adapter)


def iter_rows(path: Path) -> Iterator[tuple[int, object]]:
    """Yields (line number from 1, JSON value) of a JSONL file; blank lines are passed over.

    A line that is not JSON yields the ValueError that says so, so one bad line costs one row.

    Raises:
        ValueError: There is no such file.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file: give a JSONL file")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError):
                    yield number, ValueError("the line is not JSON")


def read_records(path: Path) -> RecordFile:
    """Reads a JSONL file of records in the old or the new form.

    Args:
        path: The file.

    Returns:
        The records in order, and every row that was refused.

    Raises:
        ValueError: There is no such file.
    """
    return collect(iter_rows(path), record_from_json)


def read_labelled(path: Path) -> list[Record]:
    """Reads a file every row of which must be a record with an adapter.

    Args:
        path: JSONL file.

    Raises:
        ValueError: There is no such file, no record in it, a row that is none, or a record without
            an adapter.
    """
    found = read_records(path)
    if found.refused:
        first = found.refused[0]
        raise ValueError(
            f"{path} holds {len(found.refused)} rows that are no records, the first in line "
            f"{first.row}: {first.reason}; remove them"
        )
    if not found.records:
        raise ValueError(f"{path} holds no record")
    if unlabelled := sum(record.adapter is None for record in found.records):
        raise ValueError(f"{unlabelled} records have no adapter; run `molora data label` first")
    return list(found.records)


def iter_records(path: Path) -> Iterator[Record | Refusal]:
    """Reads a JSONL file one row at a time; holds one row in memory.

    Raises:
        ValueError: There is no such file.
    """
    return (found for _, found in read_each(iter_rows(path), record_from_json))


def check_new_folder(out: Path) -> None:
    """Refuses to write a data set over something.

    Raises:
        ValueError: `out` is a file, or a folder that holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not an empty folder: choose a new one")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes objects as JSONL; the file appears when it is whole.

    Returns:
        How many rows were written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    count = 0
    with partial.open("w", encoding="ascii", newline="\n") as out:
        for row in rows:
            out.write(json.dumps(row) + "\n")
            count += 1
    os.replace(partial, path)
    return count


def write_records(path: Path, records: Iterable[Record]) -> int:
    """Writes records as JSONL in the form they have.

    Returns:
        How many were written.
    """
    return write_rows(path, (record.to_json() for record in records))


def read_tolerance(value: object) -> tuple[float, float] | None:
    """Reads a tolerance: absent, one number for both axes, or one for each.

    Returns:
        (x, y) in thousandths, or None.

    Raises:
        ValueError: It is none of these, or negative.
    """
    if value is None:
        return None
    pair = value if isinstance(value, list | tuple) else (value, value)
    if len(pair) == 2 and all(type(side) in (int, float) and side >= 0 for side in pair):
        return pair[0], pair[1]
    raise ValueError("`tolerance` must be one number or two, in thousandths, not negative")


def collect(rows: Iterable[tuple[int, object]], read: Callable[[object], Record]) -> RecordFile:
    """Reads numbered rows and keeps the reasons of those that cannot be read.

    Args:
        rows: (number, JSON value or the ValueError that stands for it).
        read: Raises ValueError for a row it refuses.

    Returns:
        The records in order, and what was refused.
    """
    records: list[Record] = []
    refused: list[Refusal] = []
    for _, found in read_each(rows, read):
        if isinstance(found, Refusal):
            refused.append(found)
        else:
            records.append(found)
    return RecordFile(tuple(records), tuple(refused))


def read_each(
    rows: Iterable[tuple[int, object]], read: Callable[[object], Record]
) -> Iterator[tuple[int, Record | Refusal]]:
    """Reads numbered rows one at a time, see `collect`.

    Yields:
        The row's number and its record, or why it was refused.
    """
    for number, row in rows:
        try:
            if isinstance(row, ValueError):
                raise row
            yield number, read(row)
        except ValueError as error:
            yield number, Refusal(number, str(error))


def _turn_from_json(turn: object) -> Turn:
    if isinstance(turn, dict):
        role, value = turn.get("from"), turn.get("value")
        if isinstance(role, str) and isinstance(value, str):
            return Turn(role, value)
    raise ValueError("a turn must be an object with `from` and `value`")
