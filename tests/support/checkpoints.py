"""A real Qwen3-VL checkpoint on disk with random weights, made once per test run."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from training.miniature.checkpoint import write_untrained

CORPUS = ["Click December 3 in the calendar", "Where is row 3", "[498, 385]", "user assistant"]


@functools.cache
def untrained_checkpoint() -> Path:
    """The miniature before training: its config, tokenizer and image processor are the real ones.

    Returns:
        The checkpoint's directory, removed when the run ends.
    """
    folder = Path(tempfile.mkdtemp(prefix="molora-checkpoint-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_untrained(folder / "base", CORPUS * 50, seed=0)
    return folder / "base"
