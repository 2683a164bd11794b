"""Changes of a screen that leave the instruction true; coordinates of the answer move along.

Knows images and calls, not who learns from them. Every function is pure: the same image, calls
and seed give the same result. A theme is no change of pixels, it is chosen when a screen is drawn.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image, ImageEnhance, ImageFilter

from training.data.calls import ToolCall, format_calls
from training.data.records import Record, Turn
from training.screens.geometry import THOUSANDTHS, Box


@dataclass(frozen=True)
class Example:
    """A screen and what is answered on it.

    Args:
        image: RGB.
        calls: The answer, coordinates in thousandths.
        tolerance: (x, y) in thousandths; None leaves it to the scoring's default.
    """

    image: Image.Image
    calls: tuple[ToolCall, ...]
    tolerance: tuple[float, float] | None = None


@dataclass(frozen=True)
class AugmentConfig:
    """How far an image may be changed; each kind of change is made with probability `share`.

    Args:
        share: Probability of each change, in [0, 1].
        scale: Smallest and largest factor of both sides.
        crop: Largest part of a side that is cut off at each of its two ends.
        colour: Largest relative change of brightness, contrast and saturation.
        blur_px: Largest radius of the Gaussian blur in pixels.
        jpeg_quality: Lowest and highest quality.

    Raises:
        ValueError: A number is out of its range.
    """

    share: float = 0.5
    scale: tuple[float, float] = (0.8, 1.25)
    crop: float = 0.04
    colour: float = 0.15
    blur_px: float = 0.8
    jpeg_quality: tuple[int, int] = (60, 95)

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is {self.share}: give a probability")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale is {self.scale}: give two rising factors above 0")
        if not 0 <= self.crop < 0.5:
            raise ValueError(f"crop is {self.crop}: give a part of a side below one half")
        if not (0 <= self.colour < 1 and self.blur_px >= 0):
            raise ValueError("colour must lie in [0, 1) and blur_px must not be negative")
        if not 1 <= self.jpeg_quality[0] <= self.jpeg_quality[1] <= 100:
            raise ValueError(f"jpeg_quality is {self.jpeg_quality}: give two of 1 to 100, rising")


def augment(example: Example, rng: random.Random, config: AugmentConfig | None = None) -> Example:
    """Changes an example at random: crop, scale, colour, blur, JPEG, in this order.

    Args:
        example: What to change.
        rng: Decides which changes are made and how far they go.
        config: Their limits; the defaults if None.

    Returns:
        The changed example; its answer points at what it pointed at.
    """
    limits = config or AugmentConfig()

    def chosen() -> bool:
        return rng.random() < limits.share

    if chosen():
        example = crop(example, random_window(example, rng, limits.crop))
    if chosen():
        example = scale(example, rng.uniform(*limits.scale))
    image = example.image
    if chosen():
        around = (1 - limits.colour, 1 + limits.colour)
        brightness, contrast, saturation = (rng.uniform(*around) for _ in range(3))
        image = recolour(image, brightness, contrast, saturation)
    if chosen():
        image = blur(image, rng.uniform(0, limits.blur_px))
    if chosen():
        image = through_jpeg(image, rng.randint(*limits.jpeg_quality))
    return replace(example, image=image)


def augment_record(
    record: Record, image: Image.Image, rng: random.Random, config: AugmentConfig | None = None
) -> tuple[Record, Image.Image]:
    """Changes a record's screen; its answer and its metadata move along.

    Args:
        record: A record whose calls fit the image.
        image: Its screen.
        rng: See `augment`.
        config: See `augment`.

    Returns:
        The record with the new answer, tolerance, size and pixel, and the new screen, RGB.
    """
    before = Example(image.convert("RGB"), record.calls, record.tolerance)
    after = augment(before, rng, config)
    changed: dict[str, Any] = {"image_size": list(after.image.size)}
    if after.tolerance is not None:
        changed["tolerance"] = list(after.tolerance)
    at = next((c.arguments["coordinate"] for c in after.calls if "coordinate" in c.arguments), None)
    if record.metadata.get("real_coords") is not None and at is not None:
        sides = zip(at, after.image.size, strict=True)
        changed["real_coords"] = [round(part * side / THOUSANDTHS) for part, side in sides]
    metadata = {name: changed.get(name, value) for name, value in record.metadata.items()}
    turns = (*record.turns[:-1], Turn(record.turns[-1].role, format_calls(after.calls)))
    return replace(record, turns=turns, metadata=metadata), after.image


def scale(example: Example, factor: float) -> Example:
    """Resizes the screen; thousandths stay as they are."""
    width, height = (max(1, round(side * factor)) for side in example.image.size)
    resized = example.image.resize((width, height), Image.Resampling.LANCZOS)
    return replace(example, image=resized)


def crop(example: Example, window: Box) -> Example:
    """Cuts a window out of the screen.

    Args:
        example: What to cut.
        window: In pixels, on the screen, with every point and box of the answer inside.

    Returns:
        The cut-out, with coordinates and tolerance in thousandths of its own sides.

    Raises:
        ValueError: The window is not on the screen, or the answer is not in the window.
    """
    width, height = example.image.size
    if window.x0 < 0 or window.y0 < 0 or window.x1 > width or window.y1 > height:
        raise ValueError(f"{window} is not on the {width}x{height} screen: give pixels on it")

    def moved(value: int, axis: int) -> int:
        start, end = ((window.x0, window.x1), (window.y0, window.y1))[axis]
        pixel = value * example.image.size[axis] / THOUSANDTHS
        part = round((pixel - start) / (end - start) * THOUSANDTHS)
        if not 0 <= part <= THOUSANDTHS:
            raise ValueError(f"{window} leaves out what the answer points at: take a larger window")
        return part

    tolerance = example.tolerance and (
        example.tolerance[0] * width / (window.x1 - window.x0),
        example.tolerance[1] * height / (window.y1 - window.y0),
    )
    image = example.image.crop((window.x0, window.y0, window.x1, window.y1))
    return Example(image, tuple(_move_call(call, moved) for call in example.calls), tolerance)


def random_window(example: Example, rng: random.Random, largest: float) -> Box:
    """Draws a window that cuts little off and leaves the answer with its tolerance inside.

    Args:
        example: What is to be cut.
        rng: Source of randomness.
        largest: Part of a side that may be cut off at each of its ends, below one half.

    Returns:
        The window in pixels.
    """
    edges: list[tuple[int, int]] = []
    for axis, side in enumerate(example.image.size):
        margin = example.tolerance[axis] if example.tolerance else 0
        parts = [part for call in example.calls for part in _parts(call, axis)]
        first = min((part - margin for part in parts), default=THOUSANDTHS)
        last = max((part + margin for part in parts), default=0)
        start = rng.uniform(0, min(largest, max(0, first / THOUSANDTHS)))
        end = rng.uniform(0, min(largest, max(0, 1 - last / THOUSANDTHS)))
        # Rounded outwards: a target at the window's edge must stay on it.
        edges.append((int(start * side), side - int(end * side)))
    (x0, x1), (y0, y1) = edges
    return Box(x0, y0, x1, y1)


def recolour(
    image: Image.Image, brightness: float, contrast: float, saturation: float
) -> Image.Image:
    """Multiplies brightness, contrast and saturation; 1 leaves them as they are."""
    image = ImageEnhance.Brightness(image).enhance(brightness)
    image = ImageEnhance.Contrast(image).enhance(contrast)
    return ImageEnhance.Color(image).enhance(saturation)


def blur(image: Image.Image, radius_px: float) -> Image.Image:
    """A Gaussian blur."""
    return image.filter(ImageFilter.GaussianBlur(radius_px))


def through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """What JPEG leaves of an RGB image."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    buffer.seek(0)
    return Image.open(buffer, formats=("JPEG",)).convert("RGB")


def _move_call(call: ToolCall, moved: Callable[[int, int], int]) -> ToolCall:
    return ToolCall(call.name, _move_arguments(call.arguments, moved))


def _move_arguments(
    arguments: Mapping[str, Any], moved: Callable[[int, int], int]
) -> dict[str, Any]:
    """Points, boxes and the boxes of regions; everything else stays."""
    new = dict(arguments)
    for name in ("coordinate", "bbox_2d"):
        if name in new:
            new[name] = [moved(part, axis % 2) for axis, part in enumerate(new[name])]
    if "regions" in new:
        new["regions"] = [_move_arguments(region, moved) for region in new["regions"]]
    return new


def _parts(call: ToolCall, axis: int) -> Iterator[int]:
    """Every coordinate of a call on one axis."""
    for arguments in (call.arguments, *call.arguments.get("regions", ())):
        for name in ("coordinate", "bbox_2d"):
            yield from arguments.get(name, ())[axis::2]
