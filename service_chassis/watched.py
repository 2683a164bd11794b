"""What files say, read again when they change, so that nobody restarts a server for a new secret.

Knows files and when they change; does not know what is in them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from service_chassis.logging import describe_exception

Value = TypeVar("Value")
# Where a file is, and which version of it; None while there is none.
_Stamp = tuple[int, int, int, int] | None

_log = structlog.get_logger()


class Watched(Generic[Value]):
    """The last good content of some files. Any thread may ask.

    Files that are replaced one after the other do not fit each other for a moment, and a mistake
    in one of them must not stop a server that runs: until they can be used, what they said before
    stays in force, and the log says so once for each change.

    Args:
        what: Names the content in the log, e.g. `tls`.
        files: The files.
        read: Reads all of them; an OSError or ValueError means that they cannot be used.

    Raises:
        OSError: They cannot be used now.
        ValueError: Likewise.
    """

    def __init__(self, what: str, files: Sequence[Path], read: Callable[[], Value]) -> None:
        self._what = what
        self._files = tuple(files)
        self._read = read
        self._lock = threading.Lock()
        # Before the content: a change between the two is seen by the next call.
        self._stamps = self._look()
        self._value = read()

    def current(self) -> Value:
        """The content now; the same object until it changes."""
        with self._lock:
            stamps = self._look()
            if stamps != self._stamps:
                self._stamps = stamps
                self._read_again()
            return self._value

    def _read_again(self) -> None:
        try:
            self._value = self._read()
        except (OSError, ValueError) as error:
            fault = describe_exception(error)
            _log.error("changed files cannot be used, the old stay", what=self._what, fault=fault)
        else:
            _log.info("changed files are in force", what=self._what)

    def _look(self) -> tuple[_Stamp, ...]:
        return tuple(_stamp(file) for file in self._files)


def _stamp(file: Path) -> _Stamp:
    try:
        seen = os.stat(file)
    except OSError:
        return None
    return seen.st_dev, seen.st_ino, seen.st_mtime_ns, seen.st_size
