"""The cases of an evaluation, read from labelled records; no vacuous one is left out here.

Knows records and image files; knows no service.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from training.data.images import find_image, open_image
from training.data.importer import source_of
from training.data.records import Record, read_labelled
from training.evaluation.core import Case

HELD_OUT = Path(__file__).resolve().parents[2] / "miniature" / "samples" / "held_out.jsonl"
NO_TASK = "(none)"


def read_cases(
    records: Path, images_root: Path | None = None, limit: int | None = None, seed: int = 0
) -> tuple[Case, ...]:
    """Reads labelled records.

    Args:
        records: JSONL file.
        images_root: Folder that image paths are relative to; None for the file's.
        limit: Cases at most; experts then take turns, and chance picks among their records.
        seed: Of that choice.

    Raises:
        ValueError: There is no such file or no record in it, a row is no record, a record has no
            adapter, or an image cannot be read.
    """
    labelled = read_labelled(records)
    chosen = labelled if limit is None else _in_turns(labelled, seed)[:limit]
    folder = images_root or records.parent
    return tuple(_case(record, folder, records.stem) for record in chosen)


def check_known(cases: Sequence[Case], experts: Sequence[str]) -> None:
    """Holds the labels against the experts that are routed to.

    Raises:
        ValueError: A case is of none of them.
    """
    if strange := sorted({case.expert for case in cases} - set(experts)):
        raise ValueError(
            f"records name {', '.join(strange)}, but the router knows {', '.join(experts)}; "
            "leave them out or serve their experts"
        )


def with_other_screens(cases: Sequence[Case], seed: int) -> list[Case]:
    """For each case another one, whose screen it gets in the control.

    The cases, by expert and shuffled within, are turned by the number of the largest group, so
    that a case gets another expert's screen wherever no expert has more than half of the cases.

    Args:
        cases: At least one.
        seed: Of the order within the groups.
    """
    noise = random.Random(seed)  # noqa: S311 - no secret
    order = sorted(range(len(cases)), key=lambda at: (cases[at].expert, noise.random()))
    groups = itertools.groupby(order, key=lambda at: cases[at].expert)
    turn = max(len(list(group)) for _, group in groups)
    others = {at: order[(place + turn) % len(order)] for place, at in enumerate(order)}
    return [cases[others[at]] for at in range(len(cases))]


def _in_turns(records: Sequence[Record], seed: int) -> list[Record]:
    groups: dict[str | None, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.adapter].append(record)
    noise = random.Random(seed)  # noqa: S311 - no secret
    for group in groups.values():
        noise.shuffle(group)
    turns = itertools.zip_longest(*groups.values())
    return [record for turn in turns for record in turn if record is not None]


def _case(record: Record, folder: Path, file: str) -> Case:
    try:
        screen = find_image(record.image, [folder])
        width, height = open_image(screen).size
    except ValueError as error:
        raise ValueError(f"record {record.id}: {error}") from None
    return Case(
        id=record.id,
        prompt=record.prompt,
        system=record.system,
        # Records of the old form begin their answers with a line end.
        target=record.turns[-1].value.lstrip("\n"),
        screen=screen,
        width=width,
        height=height,
        expert=str(record.adapter),
        task_type=record.task_type or NO_TASK,
        source=source_of(record) or file,
        expected=record.calls,
        tolerance=record.tolerance,
    )
