"""Our wheel, built once per test run from a copy without stubs, as a fresh clone has it."""

from __future__ import annotations

import atexit
import functools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
_LEFT_OUT = (".venv", ".git", "*cache*", "runs", "artifacts", "tests", "samples", "*_pb2*")


@functools.cache
def built_wheel() -> Path:
    """The wheel's file."""
    copy = Path(tempfile.mkdtemp(prefix="molora-wheel-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    shutil.copytree(ROOT, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel"],
        cwd=copy,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (path,) = (copy / "dist").glob("*.whl")
    return path
