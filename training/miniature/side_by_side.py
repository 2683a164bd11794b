"""Runs the same step for several names at once. Knows processes and cores, and no step."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from multiprocessing.queues import Queue


def core_groups(cores_each: int) -> list[list[int]]:
    """The cores that this process may use, in groups of so many; none where a core has no number.

    Args:
        cores_each: Of a group; what is left over is in none.
    """
    if not hasattr(os, "sched_getaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))
    return [cores[at : at + cores_each] for at in range(0, len(cores) - cores_each + 1, cores_each)]


def side_by_side(
    step: Callable[[str], object], names: Sequence[str], groups: Sequence[Sequence[int]]
) -> None:
    """Calls `step` with each name, as many at a time as there are groups.

    Args:
        step: Can be pickled, as what it raises can.
        names: In the order in which they begin.
        groups: Cores of each process.

    Raises:
        Exception: What the first step that failed raised; the others are stopped.
    """
    context = get_context("spawn")
    free: Queue[Sequence[int]] = context.Queue()
    for group in groups:
        free.put(group)
    with ProcessPoolExecutor(len(groups), context, _keep_to, (free,)) as pool:
        try:
            for done in as_completed([pool.submit(step, name) for name in names]):
                done.result()
        except BaseException:
            # Left alone, those that run would go on, and those that wait begin.
            for process in context.active_children():
                process.terminate()
            raise


def _keep_to(free: Queue[Sequence[int]]) -> None:
    os.sched_setaffinity(0, free.get())
