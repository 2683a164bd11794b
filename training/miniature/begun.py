"""What a work folder was begun with: its steps are done or not, whatever they were done with.

Knows a file of what was chosen; does not know what a step does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.run_file import different, write_whole

RECIPE_FILE = "recipe.json"


def check_begun(work: Path, recipe: Mapping[str, Any]) -> None:
    """Writes down what a run is begun with, or checks that it goes on with the same.

    Args:
        work: Folder of the run; made if it is missing.
        recipe: Name to what JSON can hold.

    Raises:
        ValueError: The folder was begun with something else.
    """
    path = work / RECIPE_FILE
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(recipe, indent=2) + "\n")
        return
    held = json.loads(path.read_text(encoding="utf-8"))
    if changed := different(held, recipe):
        raise ValueError(
            f"{work} was begun with other {', '.join(changed)} ({RECIPE_FILE}): "
            "give another --work, or remove the folder"
        )
