"""Shows a drawn screen at another size: smaller, on a larger ground, or a cut-out of it.

Knows boxes and pixels, not what is drawn. With it every expert's screens come in every expert's
sizes, and a size alone tells nothing about the expert.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from training.data.calls import ToolCall
from training.screens.geometry import Box
from training.screens.tasks import Task
from training.screens.tasks.core import Asker

SIZES = (
    (225, 208), (380, 352), (502, 369), (696, 651), (1155, 853), (1280, 800), (1640, 930),
    (1914, 1032),
)  # fmt: skip
"""Every size that one of the experts' screens has by itself."""

UNSEEN_SIZES = ((300, 300), (640, 480), (1024, 768), (1366, 768), (1600, 1000))
"""Held back like `UNSEEN_THEMES`: no training split uses them."""

FRESH_SIZES = ((420, 400), (800, 600), (1152, 864), (1440, 900), (1920, 1080))
"""Held back like `FRESH_THEMES`."""

# Letters of 11 px stay legible at 8, and a widget is not blown up until it is a blur.
_SMALLEST, _LARGEST = 0.7, 1.6
_CUT_SCALES = (0.85, 1.25)
_MARGIN_PX = 6
_GROUNDS = ("#000000", "#1c2733", "#3a6ea5", "#6b7280", "#c8ccd0", "#f2f2f2")


# A picture's width in pixels, and its height for each of them, where it may have any size.
_WIDTHS_PX = (208, 1980)
_HEIGHTS = (0.52, 1.02)
_KNOWN_SHARE = 0.4


def any_size(rng: random.Random) -> tuple[int, int]:
    """Draws one of `SIZES`, or more often any other (width, height) that is not held back."""
    if rng.random() < _KNOWN_SHARE:
        return rng.choice(SIZES)
    while True:
        # Small ones as often as large ones.
        width = round(math.exp(rng.uniform(*map(math.log, _WIDTHS_PX))))
        size = (width, round(width * rng.uniform(*_HEIGHTS)))
        if size not in UNSEEN_SIZES + FRESH_SIZES:
            return size


@dataclass(frozen=True)
class Frame:
    """A place of a scaled screen on a picture of another size.

    Args:
        size: (width, height) of the picture in pixels.
        scale: Pixels of the picture for one of the screen.
        left: Where the screen's left edge is; negative where it is cut off.
        top: Where its upper edge is.
    """

    size: tuple[int, int]
    scale: float
    left: int
    top: int

    def box(self, box: Box) -> Box | None:
        """Where a box of the screen is on the picture; None if it is not whole there."""
        x0, x1 = (round(x * self.scale) + self.left for x in (box.x0, box.x1))
        y0, y1 = (round(y * self.scale) + self.top for y in (box.y0, box.y1))
        if x0 < 0 or y0 < 0 or x1 > self.size[0] or y1 > self.size[1]:
            return None
        return Box(x0, y0, x1, y1)

    def show(self, image: Image.Image, ground: str) -> Image.Image:
        """The picture, in the image's mode."""
        width, height = (round(side * self.scale) for side in image.size)
        shown = Image.new(image.mode, self.size, ground)
        scaled = image.resize((width, height), Image.Resampling.LANCZOS)
        shown.paste(scaled, (self.left, self.top))
        return shown


def reframe(
    image: Image.Image, tasks: Sequence[Task], size: tuple[int, int], rng: random.Random
) -> tuple[Image.Image, list[Task]] | None:
    """Shows a screen and its tasks at another size.

    The whole screen is shown where its letters stay legible. Else it is a cut-out around the
    target of a task, with those tasks that stay the same on a cut-out and whose target it shows.

    Args:
        image: The screen.
        tasks: Its tasks.
        size: (width, height) of the picture in pixels.
        rng: Decides scale, place and ground.

    Returns:
        The picture and its tasks in their order, answers moved along; None where no task can be
        shown at this size.
    """
    fit = min(size[0] / image.width, size[1] / image.height)
    kept = list(tasks)
    if fit >= _SMALLEST:
        frame = _whole(image.size, size, fit, rng)
    else:
        scale = rng.uniform(*_CUT_SCALES)
        # A target that is wider than the picture cannot be what it is about.
        kept = [task for task in tasks if task.local and _fits(task.target, scale, size)]
        if not kept:
            return None
        frame = _cut_out(image.size, size, scale, rng.choice(kept).target, rng)
    shown = [moved for task in kept if (moved := _move(task, frame))]
    return (frame.show(image, rng.choice(_GROUNDS)), shown) if shown else None


def _whole(screen: tuple[int, int], size: tuple[int, int], fit: float, rng: random.Random) -> Frame:
    largest = min(fit, _LARGEST)
    scale = rng.uniform(max(_SMALLEST, 0.75 * largest), largest)
    # Rounded down, so that a box at the edge does not fall off the picture.
    left, top = (
        rng.randint(0, max(0, int(side - own * scale)))
        for side, own in zip(size, screen, strict=True)
    )
    return Frame(size, scale, left, top)


def _fits(target: Box, scale: float, size: tuple[int, int]) -> bool:
    sides = (target.x1 - target.x0, target.y1 - target.y0)
    return all(own * scale + 2 * _MARGIN_PX <= side for own, side in zip(sides, size, strict=True))


def _cut_out(
    screen: tuple[int, int], size: tuple[int, int], scale: float, target: Box, rng: random.Random
) -> Frame:
    left, top = (
        _offset(side, round(own * scale), round(a * scale), round(b * scale), rng)
        for side, own, a, b in (
            (size[0], screen[0], target.x0, target.x1),
            (size[1], screen[1], target.y0, target.y1),
        )
    )
    return Frame(size, scale, left, top)


def _offset(side: int, own: int, start: int, end: int, rng: random.Random) -> int:
    """Where an axis of the screen begins so that [start, end) is shown, with little ground."""
    if own <= side:
        return rng.randint(0, side - own)
    least = max(side - own, _MARGIN_PX - start)
    most = min(0, side - _MARGIN_PX - end)
    return rng.randint(least, most) if least <= most else (least + most) // 2


def _move(task: Task, frame: Frame) -> Task | None:
    target = frame.box(task.target)
    if target is None:
        return None
    ask = Asker(task.adapter, frame.size)
    at = ask.coordinate(target)
    calls = tuple(
        ToolCall(call.name, {**call.arguments, "coordinate": at})
        if "coordinate" in call.arguments
        else call
        for call in task.calls
    )
    tolerance = task.tolerance and ask.tolerance(target)
    return replace(task, calls=calls, target=target, tolerance=tolerance)
