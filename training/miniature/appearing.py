"""Folders that are there when they are whole. Knows paths, and nothing of what is in them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def appearing_whole(folder: Path) -> Iterator[Path]:
    """Gives a folder beside it to fill, which takes its place in the end, or never.

    Args:
        folder: What is there already is replaced.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
