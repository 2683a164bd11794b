"""Processor cores that this process may use. Knows nothing of what they do."""

from __future__ import annotations

import os


def cores() -> int:
    """How many; fewer than the machine's where a scheduler or `taskset` says so."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
