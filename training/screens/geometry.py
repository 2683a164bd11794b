"""Boxes in pixels and the model's 0-1000 coordinates; knows nothing of what is drawn in a box."""

from __future__ import annotations

from dataclasses import dataclass

THOUSANDTHS = 1000


@dataclass(frozen=True)
class Box:
    """A rectangle on a screen in pixels; the right and the lower edge lie outside.

    Args:
        x0: Left edge.
        y0: Upper edge.
        x1: Right edge, greater than `x0`.
        y1: Lower edge, greater than `y0`.
    """

    x0: int
    y0: int
    x1: int
    y1: int

    def __post_init__(self) -> None:
        if self.x0 >= self.x1 or self.y0 >= self.y1:
            raise ValueError(f"{self} is empty: give x0 < x1 and y0 < y1")

    @property
    def centre(self) -> tuple[int, int]:
        """The middle pixel."""
        return (self.x0 + self.x1) // 2, (self.y0 + self.y1) // 2

    @property
    def edges(self) -> tuple[int, int, int, int]:
        """The rectangle as Pillow draws it, both corners inside."""
        return self.x0, self.y0, self.x1 - 1, self.y1 - 1


def to_thousandths(x: float, y: float, width: int, height: int) -> tuple[int, int]:
    """Turns a pixel into the model's coordinates, each axis by its own side.

    Args:
        x: Pixels from the left.
        y: Pixels from the top.
        width: Width of the screen in pixels.
        height: Height of the screen in pixels.

    Returns:
        (x, y), integers in 0-1000: `round(pixel / side * 1000)`.

    Raises:
        ValueError: The pixel is not on the screen.
    """
    if not (0 <= x <= width and 0 <= y <= height):
        raise ValueError(f"pixel ({x}, {y}) is off the {width}x{height} screen: pass pixels on it")
    return round(x / width * THOUSANDTHS), round(y / height * THOUSANDTHS)
