"""Draws screens and writes them as a data set, split by image; knows no model."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from training.data.records import Record, new_record, write_records
from training.screens.calendar import CalendarScreen, draw_calendar
from training.screens.claim_window import draw_claim_window
from training.screens.tasks import CALENDAR, CLAIM_WINDOW, Screen, Task, tasks_for

TRAIN, VALID, HELD_OUT = "train", "valid", "held_out"
SHARES: Mapping[str, float] = MappingProxyType({TRAIN: 0.8, VALID: 0.1, HELD_OUT: 0.1})
"""What part of each kind's images goes to which split."""

_DRAW: Mapping[str, Callable[[random.Random], Screen]] = MappingProxyType(
    {CALENDAR: draw_calendar, CLAIM_WINDOW: draw_claim_window}
)
# A claim window's name must let the label rules know it again when its label is taken away.
_STEMS = MappingProxyType({CALENDAR: "calendar", CLAIM_WINDOW: "edit-claim-window"})


@dataclass(frozen=True)
class Split:
    """One file of the data set."""

    path: Path
    images: int
    records: int


@dataclass(frozen=True)
class Synthesis:
    """What was written: the splits by name."""

    splits: Mapping[str, Split]


def synthesize(
    out: Path,
    *,
    images_per_kind: int,
    tasks_per_image: int,
    seed: int,
    shares: Mapping[str, float] = SHARES,
    progress: Callable[[int, int], None] | None = None,
) -> Synthesis:
    """Draws calendars and claim windows and writes their images and `<split>.jsonl`.

    The same arguments write the same records and pixels. An image's content depends on the seed,
    its kind and its number only, so a larger set begins with the smaller one's screens.

    Args:
        out: Folder, new or empty.
        images_per_kind: Calendars, and as many claim windows.
        tasks_per_image: At most so many records an image.
        seed: Of everything drawn.
        shares: Split name to its part of each kind's images; the parts add up to 1.
        progress: Called with (images done, images in all) after each image.

    Returns:
        The splits, their images and records counted.

    Raises:
        ValueError: The folder holds something, or a number is too small for the shares.
    """
    _check(out, images_per_kind, tasks_per_image, shares)
    (out / "images").mkdir(parents=True, exist_ok=True)
    names = _split_names(images_per_kind, shares)
    records: dict[str, list[Record]] = {name: [] for name in shares}
    done = 0
    for kind in _DRAW:
        for number, name in enumerate(names):
            records[name] += _draw_image(out, kind, number, tasks_per_image, seed)
            done += 1
            if progress:
                progress(done, images_per_kind * len(_DRAW))
    splits = {}
    for name, rows in records.items():
        path = out / f"{name}.jsonl"
        images = len({record.image for record in rows})
        splits[name] = Split(path, images, write_records(path, rows))
    return Synthesis(splits)


def _check(
    out: Path, images_per_kind: int, tasks_per_image: int, shares: Mapping[str, float]
) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not an empty folder: choose a new one")
    if tasks_per_image < 1:
        raise ValueError(f"tasks_per_image is {tasks_per_image}: give 1 or more")
    if min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-9:
        raise ValueError("the shares must be positive and add up to 1")
    if images_per_kind < len(shares):
        raise ValueError(
            f"images_per_kind is {images_per_kind}: give {len(shares)} or more, one for each split"
        )


def _split_names(count: int, shares: Mapping[str, float]) -> list[str]:
    """The split of each image by number; every split gets at least one."""
    counts = {name: max(1, round(count * share)) for name, share in shares.items()}
    largest = max(counts, key=lambda name: counts[name])
    counts[largest] += count - sum(counts.values())
    return [name for name, images in counts.items() for _ in range(images)]


def _draw_image(out: Path, kind: str, number: int, tasks_per_image: int, seed: int) -> list[Record]:
    rng = random.Random(f"{seed}/{kind}/{number}")  # noqa: S311 - drawings, not secrets
    screen = _DRAW[kind](rng)
    stem = f"{_STEMS[kind]}_{number:05}"
    image = _save(screen, out / "images", stem, rng)
    tasks = tasks_for(screen, rng)[:tasks_per_image]
    return [
        _record(task, f"{stem}_{index:02}", f"images/{image}", screen)
        for index, task in enumerate(tasks)
    ]


def _save(screen: Screen, folder: Path, stem: str, rng: random.Random) -> str:
    """Writes the picture in its kind's format: calendars as RGBA PNG, claim windows as JPEG."""
    if isinstance(screen, CalendarScreen):
        screen.image.save(folder / f"{stem}.png", optimize=True)
        return f"{stem}.png"
    screen.image.save(folder / f"{stem}.jpg", quality=rng.randint(75, 92))
    return f"{stem}.jpg"


def _record(task: Task, record_id: str, image: str, screen: Screen) -> Record:
    metadata = {
        "task_type": task.task_type,
        "real_coords": list(task.real_coords),
        "image_size": list(screen.image.size),
        **({"tolerance": list(task.tolerance)} if task.tolerance else {}),
        **task.extras,
    }
    record = new_record(record_id, image, task.prompt, task.calls, metadata)
    return record.labelled(task.adapter)
