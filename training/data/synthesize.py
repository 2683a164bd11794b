"""Draws screens and writes them as a data set, split by image; knows no model."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from training.cores import cores
from training.data.records import Record, check_new_folder, new_record, write_records
from training.data.split import SHARES, check_shares, split_names
from training.screens.account_screen import draw_account_screen
from training.screens.appointment import draw_appointment
from training.screens.calendar import draw_calendar
from training.screens.chart_screen import draw_chart_screen
from training.screens.claim_window import draw_claim_window
from training.screens.desktop import draw_desktop
from training.screens.login_window import draw_login_window
from training.screens.reframe import FRESH_SIZES, SIZES, UNSEEN_SIZES, any_size, reframe
from training.screens.tasks import (
    ACCOUNT_SCREEN,
    APPOINTMENT,
    CALENDAR,
    CHART_SCREEN,
    CLAIM_WINDOW,
    DESKTOP,
    LOGIN_WINDOW,
    Screen,
    Task,
    tasks_for,
)
from training.screens.theme import FRESH_THEMES, UNSEEN_THEMES, Theme, any_theme


class _Draw(Protocol):
    def __call__(self, rng: random.Random, *, theme: Theme | None = None) -> Screen: ...


@dataclass(frozen=True)
class _Kind:
    """How the screens of an expert are drawn, and what their files are called.

    Args:
        draw: Draws one.
        stem: Begins the files' names.
        jpeg: Whether the files are JPEG; else PNG.
    """

    draw: _Draw
    stem: str
    jpeg: bool = False


_KINDS: Mapping[str, _Kind] = MappingProxyType(
    {
        CALENDAR: _Kind(draw_calendar, "calendar"),
        # Its name must let the label rules know it again when its label is taken away.
        CLAIM_WINDOW: _Kind(draw_claim_window, "edit-claim-window", jpeg=True),
        APPOINTMENT: _Kind(draw_appointment, APPOINTMENT, jpeg=True),
        LOGIN_WINDOW: _Kind(draw_login_window, LOGIN_WINDOW),
        DESKTOP: _Kind(draw_desktop, DESKTOP),
        CHART_SCREEN: _Kind(draw_chart_screen, CHART_SCREEN),
        ACCOUNT_SCREEN: _Kind(draw_account_screen, ACCOUNT_SCREEN, jpeg=True),
    }
)
EXPERTS = tuple(_KINDS)
"""All the experts whose screens can be drawn."""

DRAWS: Mapping[str, Callable[[random.Random], Screen]] = MappingProxyType(
    {expert: kind.draw for expert, kind in _KINDS.items()}
)
"""What draws one screen of each."""


# From so many on other processes draw too, each as many as are worth its start, a few at a time.
_MANY_IMAGES, _CHUNK, _MOST_PROCESSES = 400, 10, 61

OWN_LOOKS, ANY_LOOKS, UNSEEN_LOOKS, FRESH_LOOKS = "own", "any", "unseen", "fresh"


@dataclass(frozen=True)
class _Looks:
    """What draws a theme (None: the screen does) and another size, and whether all have another."""

    theme: Callable[[random.Random], Theme | None]
    size: Callable[[random.Random], tuple[int, int]]
    resized: bool = False


def _held_back(themes: Sequence[Theme], sizes: Sequence[tuple[int, int]]) -> _Looks:
    return _Looks(lambda look: look.choice(themes), lambda look: look.choice(sizes), resized=True)


_LOOKS: Mapping[str, _Looks] = MappingProxyType(
    {
        OWN_LOOKS: _Looks(lambda _: None, lambda look: look.choice(SIZES)),
        ANY_LOOKS: _Looks(any_theme, any_size),
        UNSEEN_LOOKS: _held_back(UNSEEN_THEMES, UNSEEN_SIZES),
        FRESH_LOOKS: _held_back(FRESH_THEMES, FRESH_SIZES),
    }
)


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
    experts: Sequence[str] = EXPERTS,
    left_out: Collection[str] = (),
    other_sizes: float = 0.0,
    looks: str = OWN_LOOKS,
    progress: Callable[[int, int], None] | None = None,
) -> Synthesis:
    """Draws the experts' screens and writes their images and `<split>.jsonl`.

    From 400 images on other processes help, so a script that calls this needs the usual guard,
    `if __name__ == "__main__":`. The same arguments write the same records and pixels. An image's
    content depends on the seed, its kind and its number only, so a larger set begins with the
    smaller one's screens.

    Args:
        out: Folder, new or empty.
        images_per_kind: Screens of each expert.
        tasks_per_image: At most so many records an image.
        seed: Of everything drawn.
        shares: Split name to its part of each kind's images; the parts add up to 1.
        experts: Whose screens; of `EXPERTS`.
        left_out: Task types that nothing is asked of.
        other_sizes: Part of the images that have another size than their own, see `reframe`: with
            `own` looks that of any expert's screens.
        looks: `own`; `any`, with themes that are made up and other sizes of any kind, to learn
            what does not depend on them; `unseen`, held-back themes and, for all the images,
            held-back sizes: a test of what is new, never for training; or `fresh`, others of both,
            which nothing was chosen by but the number of the miniature's screens.
        progress: Called with (images done, images in all) after each image.

    Returns:
        The splits, their images and records counted.

    Raises:
        ValueError: The folder holds something, a number is too small for the shares, or an expert
            or the looks are unknown.
    """
    _check(out, images_per_kind, tasks_per_image, shares, experts, other_sizes)
    if looks not in _LOOKS:
        raise ValueError(f"looks is {looks}: give one of {', '.join(_LOOKS)}")
    resized = 1.0 if _LOOKS[looks].resized else other_sizes
    asked = _Asked(tasks_per_image, frozenset(left_out))
    (out / "images").mkdir(parents=True, exist_ok=True)
    names = split_names(images_per_kind, shares)
    records: dict[str, list[Record]] = {name: [] for name in shares}
    wanted = [(expert, number) for expert in experts for number in range(images_per_kind)]
    draw = partial(_draw_image, out, asked=asked, looks=looks, resized=resized, seed=seed)
    for done, rows in enumerate(_side_by_side(draw, wanted)):
        records[names[wanted[done][1]]] += rows
        if progress:
            progress(done + 1, len(wanted))
    splits = {}
    for name, rows in records.items():
        path = out / f"{name}.jsonl"
        images = len({record.image for record in rows})
        splits[name] = Split(path, images, write_records(path, rows))
    return Synthesis(splits)


def _check(
    out: Path, images_per_kind: int, tasks_per_image: int, shares: Mapping[str, float],
    experts: Sequence[str], other_sizes: float,
) -> None:  # fmt: skip
    if not experts or set(experts) - set(EXPERTS) or len(set(experts)) < len(experts):
        raise ValueError(
            f"experts is {', '.join(experts)}: give different ones of {', '.join(EXPERTS)}"
        )
    check_new_folder(out)
    if tasks_per_image < 1:
        raise ValueError(f"tasks_per_image is {tasks_per_image}: give 1 or more")
    if not 0 <= other_sizes <= 1:
        raise ValueError(f"other_sizes is {other_sizes}: give a share between 0 and 1")
    check_shares(shares)
    if images_per_kind < len(shares):
        raise ValueError(
            f"images_per_kind is {images_per_kind}: give {len(shares)} or more, one for each split"
        )


@dataclass(frozen=True)
class _Asked:
    """How many tasks an image has at most, and which types are none of them."""

    count: int
    left_out: frozenset[str]


def _side_by_side(
    draw: Callable[[tuple[str, int]], list[Record]], wanted: Sequence[tuple[str, int]]
) -> Iterator[list[Record]]:
    """What is drawn of each, in order; by several processes where there is much to draw."""
    if len(wanted) < _MANY_IMAGES:
        yield from map(draw, wanted)
        return
    # 61 is what Windows has room for.
    processes = min(cores(), _MOST_PROCESSES, -(-len(wanted) * 2 // _MANY_IMAGES))
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        yield from pool.map(draw, wanted, chunksize=_CHUNK)


def _draw_image(
    out: Path, which: tuple[str, int], *, asked: _Asked, looks: str, resized: float, seed: int
) -> list[Record]:
    (expert, number), shown = which, _LOOKS[looks]
    source = f"{seed}/{expert}/{number}"
    rng = random.Random(source)  # noqa: S311 - drawings, not secrets
    # Of its own, so that a screen is the same one at each size and in each theme.
    look = random.Random(f"{source}/look")  # noqa: S311 - as above
    kind = _KINDS[expert]
    screen = kind.draw(rng, theme=shown.theme(look))
    quality = rng.randint(75, 92) if kind.jpeg else None
    image, tasks = screen.image, tasks_for(screen, rng)
    if look.random() < resized:
        image, tasks = reframe(image, tasks, shown.size(look), look) or (image, tasks)
    stem = f"{kind.stem}_{number:05}"
    name = f"images/{stem}.{'png' if quality is None else 'jpg'}"
    if quality is None:
        image.save(out / name)
    else:
        image.save(out / name, quality=quality)
    tasks = [task for task in tasks if task.task_type not in asked.left_out]
    return [
        _record(task, f"{stem}_{index:02}", name, image.size)
        for index, task in enumerate(tasks[: asked.count])
    ]


def _record(task: Task, record_id: str, image: str, size: tuple[int, int]) -> Record:
    metadata = {
        "task_type": task.task_type,
        "real_coords": list(task.real_coords) if task.points else None,
        "image_size": list(size),
        **({"tolerance": list(task.tolerance)} if task.tolerance else {}),
        **task.extras,
    }
    record = new_record(record_id, image, task.prompt, task.calls, metadata)
    return record.labelled(task.adapter)
