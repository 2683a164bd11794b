"""How long each step of the miniature took, over all the processes that worked on it.

Knows a file of seconds; does not know what a step does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from training.run_file import write_whole


class Clock:
    """Adds up seconds in a JSON file, step by step.

    Args:
        path: The file; its folder is made when it is written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Counts what happens inside, also if it is stopped; a later process adds to it."""
        start = time.monotonic()
        try:
            yield
        finally:
            seconds = dict(self.seconds())
            seconds[title] = seconds.get(title, 0.0) + time.monotonic() - start
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, json.dumps(seconds, indent=2) + "\n")

    def seconds(self) -> Mapping[str, float]:
        """Step to seconds, in the order in which they were counted first."""
        if not self._path.exists():
            return {}
        found: dict[str, float] = json.loads(self._path.read_text(encoding="utf-8"))
        return found
