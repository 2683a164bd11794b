"""New screens to judge a router on, and pictures that no expert knows, with their features.

Knows what is drawn and where it is kept; knows no head. Everything is in one folder:

    features.json …      of new screens of the experts, one case each: a cache of its own
    unknown/             the cache of what no expert knows; a case's source is its kind
    screens/, strangers/ what was drawn: records and images

What is whole is not made again, so a run that was stopped goes on.
"""

from __future__ import annotations

import dataclasses
import math
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

from molora_client import Molora
from training.data.calls import ToolCall
from training.data.records import Record, new_record, read_records, write_records
from training.data.sources import SOURCE
from training.data.synthesize import EXPERTS, OWN_LOOKS, synthesize
from training.extraction import cache_features
from training.feature_index import INDEX_FILE
from training.features import FeatureTable, load_features
from training.screens.reframe import SIZES
from training.screens.strangers import STRANGERS

UNKNOWN = "unknown"
RECORDS = "all.jsonl"
# Strangers for each screen of an expert: their kinds are told apart roughly.
STRANGERS_SHARE = 1 / 6
# As like an expert's task as any: only the picture is strange.
_PROMPT = "Click the button in the middle"


def judged_screens(
    folder: Path,
    executor: Molora,
    experts: Sequence[str],
    *,
    images: int,
    seed: int,
    progress: bool = True,
) -> Path:
    """Draws and extracts what is not there yet.

    Args:
        folder: Of everything; made if it is missing.
        executor: Connected to an executor that has the experts loaded.
        experts: Whose screens. Those of the other kinds that can be drawn are strangers.
        images: Of all the experts together, as many of each, rounded up, and at the sizes that
            they were trained on; a sixth as many strangers are drawn, likewise.
        seed: Of everything drawn; another one than that of the head's own screens.
        progress: Show progress bars.

    Returns:
        The folder.

    Raises:
        ValueError: An expert's screens cannot be drawn.
        MoloraError: A call failed.
    """
    screens, strangers = folder / "screens", folder / "strangers"
    each = math.ceil(images / len(experts))
    draw(screens, experts, images_per_kind=each, tasks=1, seed=seed)
    if not (strangers / RECORDS).exists():
        _draw_strangers(strangers, experts, math.ceil(images * STRANGERS_SHARE), seed)
    extract(screens, executor, folder, progress=progress)
    extract(strangers, executor, folder / UNKNOWN, unknown=True, progress=progress)
    return folder


def load_unknown(folder: Path) -> FeatureTable | None:
    """The cache of what no expert knows, that lies within one of labelled cases; None without."""
    return load_features(folder / UNKNOWN) if (folder / UNKNOWN).exists() else None


def draw(
    folder: Path,
    experts: Sequence[str],
    *,
    images_per_kind: int,
    tasks: int,
    seed: int,
    other_sizes: float = 0.0,
    looks: str = OWN_LOOKS,
) -> None:
    """Draws screens of some experts into one file of records, unless it is there.

    Args:
        folder: Gets the file and its images.
        experts: Whose screens.
        images_per_kind: Of each expert.
        tasks: Records of an image, at most.
        seed: Of everything drawn.
        other_sizes: Share of the screens that are shown at another size.
        looks: As of `synthesize`.
    """
    if (folder / RECORDS).exists():
        return
    # Of a run that was stopped: the records are written last.
    shutil.rmtree(folder, ignore_errors=True)
    synthesize(
        folder,
        images_per_kind=images_per_kind,
        tasks_per_image=tasks,
        seed=seed,
        shares={Path(RECORDS).stem: 1.0},
        experts=experts,
        other_sizes=other_sizes,
        looks=looks,
    )


def extract(
    drawn: Path, executor: Molora, out: Path, *, unknown: bool = False, progress: bool = True
) -> None:
    """Caches the features of what `draw` left, unless they are there."""
    if not (out / INDEX_FILE).exists():
        cache_features(drawn / RECORDS, drawn, executor, out, unknown=unknown, progress=progress)


def _draw_strangers(folder: Path, experts: Sequence[str], images: int, seed: int) -> None:
    """Made-up pictures, and screens of the kinds that none of the experts knows."""
    shutil.rmtree(folder, ignore_errors=True)
    others, records = [name for name in EXPERTS if name not in experts], []
    per_kind = math.ceil(images / (len(others) + len(STRANGERS)))
    if others:
        synthesize(
            folder,
            images_per_kind=per_kind,
            tasks_per_image=1,
            seed=seed,
            shares={"others": 1.0},
            experts=others,
        )
        drawn = read_records(folder / "others.jsonl").records
        records = [_from_source(record, str(record.adapter)) for record in drawn]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for kind in STRANGERS:
        records += [_stranger(folder, kind, number, seed) for number in range(per_kind)]
    write_records(folder / RECORDS, records)


def _stranger(folder: Path, kind: str, number: int, seed: int) -> Record:
    rng = random.Random(f"{seed}/{kind}/{number}")  # noqa: S311 - drawings, not secrets
    name = f"{kind.replace(' ', '-')}_{number:05}"
    STRANGERS[kind](rng, rng.choice(SIZES)).save(folder / "images" / f"{name}.png")
    refused = ToolCall.computer_use("terminate", status="failure")
    return new_record(name, f"images/{name}.png", _PROMPT, [refused], {SOURCE: kind})


def _from_source(record: Record, source: str) -> Record:
    return dataclasses.replace(record, metadata={**record.metadata, SOURCE: source})
