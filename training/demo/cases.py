"""The held-out screens that the demo shows. Knows records; knows no service."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from training.data.calls import ToolCall
from training.data.records import Record, read_records
from training.scoring import is_vacuous


@dataclass(frozen=True)
class Case:
    """One instruction on one held-out screen.

    Attributes:
        screen: The image file.
        width: Of the screen, in pixels.
        height: Of the screen, in pixels.
        expert: Whose task it is.
        expected: The calls that answer it.
        tolerance: (x, y) in thousandths; None for the scoring's default.
    """

    id: str
    prompt: str
    screen: Path
    width: int
    height: int
    expert: str
    task_type: str
    expected: tuple[ToolCall, ...]
    tolerance: tuple[float, float] | None


def read_cases(path: Path, count: int) -> list[Case]:
    """Takes cases from a file of labelled records.

    Experts and their task types take turns, and unused images go first, so a small count still
    shows everything. The same file gives the same cases.

    Args:
        path: JSONL file; its images lie beside it.
        count: Cases at most.

    Returns:
        The cases.

    Raises:
        ValueError: There is no such file, or no labelled record in it.
    """
    groups: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in read_records(path).records:
        if record.adapter is not None and not is_vacuous(record.calls, record.tolerance):
            groups[record.adapter][record.task_type or ""].append(record)
    if not groups:
        raise ValueError(f"{path} holds no labelled record: run `molora data label` first")
    queues = [_take_turns(groups[expert]) for expert in sorted(groups)]
    return [_case(record, path.parent) for record in _interleave(queues)[:count]]


def _take_turns(by_task: dict[str, list[Record]]) -> list[Record]:
    """The records of one expert: task types in turn, each on the least used image so far."""
    used: Counter[str] = Counter()
    left = {task: list(records) for task, records in sorted(by_task.items())}
    chosen: list[Record] = []
    while left:
        for task, records in list(left.items()):
            index = min(range(len(records)), key=lambda i, r=records: used[r[i].image])  # type: ignore[misc]
            record = records.pop(index)
            used[record.image] += 1
            chosen.append(record)
            if not records:
                del left[task]
    return chosen


def _interleave(queues: Sequence[Sequence[Record]]) -> list[Record]:
    longest = max(map(len, queues))
    return [queue[i] for i in range(longest) for queue in queues if i < len(queue)]


def _case(record: Record, folder: Path) -> Case:
    screen = folder / record.image
    with Image.open(screen) as image:
        width, height = image.size
    return Case(
        id=record.id,
        prompt=record.prompt,
        screen=screen,
        width=width,
        height=height,
        expert=str(record.adapter),
        task_type=record.task_type or "",
        expected=record.calls,
        tolerance=record.tolerance,
    )
