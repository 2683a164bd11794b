"""Files that a long run will write into: what is wrong with them is found out before it.

Knows folders and permissions; writes nothing and knows no result.
"""

from __future__ import annotations

import os
from pathlib import Path


def check_writable(file: Path) -> None:
    """Makes a file's folder, and refuses a file that could not be written there.

    Raises:
        ValueError: It is a folder, or must not be written.
        OSError: Its folder cannot be made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_dir():
        raise ValueError(f"{file} is a folder: name a file")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise ValueError(f"{file} cannot be written: name a place that can be")
