"""Steps of a long study, kept as they end, so that a stopped one goes on where it left off.

Knows files of JSON; does not know what a step does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from training.run_file import different, write_whole


class Kept:
    """A folder of finished steps.

    Args:
        folder: Made if it is missing.
        given: What the study is of; a folder that holds another one is refused.

    Raises:
        ValueError: The folder was begun with something else.
    """

    def __init__(self, folder: Path, given: Mapping[str, Any]) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        held = self.step("given", lambda: dict(given))
        stated = json.loads(json.dumps(dict(given)))
        if changed := sorted(different(held, stated)):
            raise ValueError(
                f"{folder} holds a study with other {', '.join(changed)}; give another folder, or "
                "the same to go on"
            )

    def step(self, name: str, make: Callable[[], Any]) -> Any:
        """What a step gave, as JSON holds it: made now, or by an earlier process.

        Args:
            name: Of the step.
            make: Does it; what it returns goes into a file.
        """
        path = self._path(name)
        if not path.exists():
            start = time.monotonic()
            made = {"seconds": 0.0, "made": make()}
            made["seconds"] = time.monotonic() - start
            write_whole(path, json.dumps(made))
        return json.loads(path.read_text(encoding="utf-8"))["made"]

    def seconds(self) -> dict[str, float]:
        """How long each step took, in the process that ended it, in the order of their ends."""
        paths = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}
        return {name: step["seconds"] for name, step in found.items() if name != "given"}

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"
