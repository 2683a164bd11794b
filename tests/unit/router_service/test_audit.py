"""The audit trail appends, follows a rotation, and never loses a record in silence."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from router_service import audit
from router_service.audit import AuditLog
from router_service.errors import Unavailable


class Trail:
    """A log on a file, and what it told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.held: list[int] = []
        self.log = AuditLog(path, self.held.append)

    def numbers(self, path: Path | None = None) -> list[int]:
        return [json.loads(line)["n"] for line in (path or self.path).read_text().splitlines()]

    def add(self, *numbers: int) -> None:
        for number in numbers:
            self.log.add({"n": number})


class Disk:
    """Stands before `os.write`: takes `room` bytes, then refuses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room: int | None = None
        self._write = os.write
        monkeypatch.setattr(audit.os, "write", self.write)

    def write(self, file: int, data: bytes) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = data if self.room is None else data[: self.room]
        if self.room is not None:
            self.room -= len(taken)
        return self._write(file, taken)


@pytest.fixture
def trail(tmp_path: Path) -> Iterator[Trail]:
    trail = Trail(tmp_path / "audit.jsonl")
    yield trail
    trail.log.close()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    capture = structlog.testing.LogCapture()
    monkeypatch.setattr(audit, "_log", structlog.wrap_logger(None, processors=[capture]))
    return capture.entries


def test_one_line_a_record_for_the_operators_eyes_only(trail: Trail) -> None:
    trail.add(1, 2)
    assert trail.path.read_text() == '{"n":1}\n{"n":2}\n'
    assert trail.path.stat().st_mode & 0o777 == 0o600
    assert trail.held == []


def test_what_is_there_stays(trail: Trail) -> None:
    trail.add(1)
    second = AuditLog(trail.path, trail.held.append)
    second.add({"n": 2})
    second.close()
    trail.add(3)
    assert trail.numbers() == [1, 2, 3]


def test_text_cannot_break_a_line(trail: Trail) -> None:
    trail.log.add({"n": 1, "id": 'a\nb"\u2028'})
    assert trail.path.read_bytes().count(b"\n") == 1
    assert json.loads(trail.path.read_text())["id"] == 'a\nb"\u2028'


def test_a_rotation_by_renaming_begins_a_new_file(trail: Trail) -> None:
    trail.add(1)
    rotated = trail.path.rename(trail.path.with_suffix(".1"))
    trail.add(2)
    assert (trail.numbers(rotated), trail.numbers()) == ([1], [2])
    trail.path.unlink()
    trail.add(3)
    assert trail.numbers() == [3]


def test_a_rotation_by_copying_and_truncating(trail: Trail) -> None:
    trail.add(1)
    os.truncate(trail.path, 0)
    trail.add(2)
    assert trail.path.read_text() == '{"n":2}\n'


def test_a_full_disk_holds_records_and_says_so(trail: Trail, disk: Disk, events: list[Any]) -> None:
    trail.add(1)
    disk.room = 0
    trail.add(2, 3)
    assert trail.held == [1, 2]
    assert [(e["log_level"], e["errno"]) for e in events] == [("error", "ENOSPC")]
    disk.room = None
    trail.add(4)
    assert trail.numbers() == [1, 2, 3, 4]
    assert trail.held[-1] == 0
    assert events[-1]["event"] == "audit file can be written again"


def test_a_disk_that_fills_within_a_line_goes_on_there(trail: Trail, disk: Disk) -> None:
    disk.room = 3
    trail.add(1)
    assert trail.path.read_text() == '{"n'
    disk.room = None
    trail.add(2)
    assert trail.numbers() == [1, 2]


def test_a_line_is_never_divided_by_a_rotation(trail: Trail, disk: Disk) -> None:
    disk.room = 3
    trail.add(1)
    trail.path.rename(trail.path.with_suffix(".1"))
    disk.room = None
    trail.add(2)
    assert trail.numbers() == [1, 2]


def test_a_folder_that_is_gone_and_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    trail = Trail(folder / "audit.jsonl")
    trail.path.unlink()
    folder.rmdir()
    trail.add(1)
    assert trail.held == [1]
    folder.mkdir()
    trail.log.close()
    assert trail.numbers() == [1]


def test_full_memory_refuses_decisions(
    trail: Trail, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "MAX_HELD", 2)
    disk.room = 0
    trail.log.check()
    trail.add(1, 2)
    with pytest.raises(Unavailable) as caught:
        trail.log.check()
    assert caught.value.reason == "AUDIT_UNWRITABLE"
    disk.room = None
    trail.log.check()
    assert trail.numbers() == [1, 2]


def test_what_is_lost_at_the_end_is_counted(tmp_path: Path, disk: Disk, events: list[Any]) -> None:
    trail = Trail(tmp_path / "audit.jsonl")
    disk.room = 0
    trail.add(1, 2)
    trail.log.close()
    assert (events[-1]["event"], events[-1]["records"]) == ("audit records are lost", 2)


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        AuditLog(tmp_path / "no" / "audit.jsonl", lambda _: None)
