"""The screens of a study: what heads learn from, and what they are tried on, none of it twice.

Knows how many are drawn of each kind; knows no model.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from executor_service.model.experts import discover_experts
from training.data.synthesize import EXPERTS, FRESH_LOOKS, OWN_LOOKS, UNSEEN_LOOKS, synthesize
from training.miniature.experts import LEFT_OUT
from training.miniature.router import LOOKS, OTHER_SIZES, TASKS_PER_IMAGE

# Beside the seeds of base, experts, router and samples.
_SEED = 9_000_011
_FILE = "all"
_CASES = ("held_out", "fresh_cases")


@dataclass(frozen=True)
class Sizes:
    """How much is drawn, of each expert.

    Attributes:
        images: Screens whose features heads learn from, many in other themes and sizes.
        unseen: Screens in unseen themes and sizes.
        lessons: Screens that stage 2 learns from.
        cases: Held-out screens that are answered, with one task each. More of them begin with
            the same ones, and nothing learns from any.
        tasks: Tasks of each screen of the others, at most.
    """

    images: int
    unseen: int
    lessons: int
    cases: int
    tasks: int = 4


@dataclass(frozen=True)
class Sets:
    """JSONL files, each with its images beside it.

    Attributes:
        learnt: For stage 1 and its own splits.
        unseen: Unseen themes and sizes, which choices are compared in.
        lessons: For stages 2 and 3.
        held_out: Cases to answer, in themes and sizes as in training.
        fresh_cases: Cases to answer, in others of both, `fresh` as of `synthesize`.
    """

    learnt: Path
    unseen: Path
    lessons: Path
    held_out: Path
    fresh_cases: Path


def experts_in(folder: Path) -> tuple[str, ...]:
    """Names of the experts that a folder holds, as an executor orders them.

    Raises:
        ValueError: There is none, or one whose screens cannot be drawn.
    """
    names = tuple(sorted(location.name for location in discover_experts(folder, {}, {})))
    if not names or set(names) - set(EXPERTS):
        raise ValueError(
            f"{folder} holds {', '.join(names) or 'no expert'}: give a folder with experts of "
            f"{', '.join(EXPERTS)}"
        )
    return names


def draw_sets(
    folder: Path,
    experts: Sequence[str],
    sizes: Sizes,
    progress: Callable[[int, int], None] | None = None,
) -> Sets:
    """Draws the sets that are not there yet.

    Args:
        folder: Gets a folder a set, those of cases one for each number of them.
        experts: Whose screens.
        sizes: How many.
        progress: Called with (images done, images in all) of each set.
    """
    # Images, tasks of each, part in other sizes, and looks.
    wanted = {
        "learnt": (sizes.images, TASKS_PER_IMAGE, OTHER_SIZES, LOOKS),
        "unseen": (sizes.unseen, sizes.tasks, 0.0, UNSEEN_LOOKS),
        "lessons": (sizes.lessons, sizes.tasks, 0.0, OWN_LOOKS),
        "held_out": (sizes.cases, 1, 0.0, OWN_LOOKS),
        "fresh_cases": (sizes.cases, 1, 0.0, FRESH_LOOKS),
    }
    files = {}
    for number, (name, (images, tasks, other_sizes, looks)) in enumerate(wanted.items()):
        drawn = folder / (f"{name}-{images}" if name in _CASES else name)
        files[name] = drawn / f"{_FILE}.jsonl"
        if files[name].exists():
            continue
        # What a stopped process has drawn of it.
        shutil.rmtree(drawn, ignore_errors=True)
        synthesize(
            drawn,
            images_per_kind=images,
            tasks_per_image=tasks,
            seed=_SEED + number,
            shares={_FILE: 1.0},
            experts=experts,
            left_out=LEFT_OUT,
            other_sizes=other_sizes,
            looks=looks,
            progress=progress,
        )
    return Sets(**files)
