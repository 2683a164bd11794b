"""The audit trail: one JSON line for every Route and Predict, appended to a file.

Knows files and lines; what is in a record is `ledger`'s. The written rule for a file that cannot
be written: records are held in memory and written first when it can be again; the log says so and
`molora_router_audit_held` counts them. While as many are held as may be, requests are refused with
UNAVAILABLE: no decision leaves without a record. Records held when the process ends are lost, and
the log says how many.

A rotation that renames the file is noticed at the next record, and a new file is begun; one that
copies and truncates works as well, because every line is appended.
"""

from __future__ import annotations

import collections
import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from router_service.errors import Unavailable

_log = structlog.get_logger()

# About 10 MB.
MAX_HELD = 10_000
# Who decided what about whose screen is for the operator's eyes only.
_FILE_MODE = 0o600


class AuditLog:
    """Appends to one file. One thread at a time may use it.

    Lines go to the operating system at once and are not synced: they survive the end of this
    process, not that of the machine. Keep the file on a local disk: a write happens on the event
    loop.

    Args:
        path: The file; made if it is missing.
        on_held: Told how many records wait, whenever that changes.

    Raises:
        OSError: The file cannot be written now.
    """

    def __init__(self, path: Path, on_held: Callable[[int], None]) -> None:
        self._path = path
        self._on_held = on_held
        self._held: collections.deque[bytes] = collections.deque()
        # Of the first line that waits: a disk may become full within it.
        self._written_bytes = 0
        self._told = 0
        self._failing = False
        self._file = self._open()

    def check(self) -> None:
        """Make sure that there is room for one more record.

        Raises:
            Unavailable: AUDIT_UNWRITABLE, as many records wait as may.
        """
        if len(self._held) >= MAX_HELD:
            self._write()
        if len(self._held) >= MAX_HELD:
            raise Unavailable(
                "AUDIT_UNWRITABLE",
                "The router cannot write its audit file, and decides nothing without a record; "
                "retry once its operator has made room.",
            )

    def add(self, record: Mapping[str, Any]) -> None:
        """Write a record, after those that wait; it waits too if the file cannot be written."""
        line = json.dumps(record, separators=(",", ":"), allow_nan=False)
        self._held.append(f"{line}\n".encode())
        self._write()

    def close(self) -> None:
        """Try once more to write what waits, and close the file."""
        self._write()
        if self._held:
            _log.error("audit records are lost", records=len(self._held))
        os.close(self._file)

    def _write(self) -> None:
        try:
            self._follow_rotation()
            while self._held:
                self._append(self._held[0])
                self._held.popleft()
        except OSError as error:
            if not self._failing:
                name = errno.errorcode.get(error.errno or 0, "unknown")
                _log.error("audit file cannot be written, records are held", errno=name)
            self._failing = True
        else:
            if self._failing:
                _log.info("audit file can be written again")
            self._failing = False
        if len(self._held) != self._told:
            self._told = len(self._held)
            self._on_held(self._told)

    def _append(self, line: bytes) -> None:
        while self._written_bytes < len(line):
            self._written_bytes += os.write(self._file, line[self._written_bytes :])
        self._written_bytes = 0

    def _follow_rotation(self) -> None:
        """Begin a new file where another one, or none, has the path now."""
        try:
            at_path = os.stat(self._path)
        except FileNotFoundError:
            at_path = None
        if at_path is None or not os.path.samestat(at_path, os.fstat(self._file)):
            fresh = self._open()
            os.close(self._file)
            self._file = fresh
            # A line goes into one file.
            self._written_bytes = 0

    def _open(self) -> int:
        return os.open(
            self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE
        )
