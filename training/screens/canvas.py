"""What the larger screens are drawn with: text, buttons, inputs, scroll bars; knows no screen."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from training.screens.geometry import Box
from training.screens.theme import Theme

BAR_PX = 18
TOOL_SIGN_PX = 18
SIGN_COLOURS = (
    "#2f6fd0", "#c0392b", "#27864f", "#8e44ad", "#c77700", "#1a8a94", "#6b7480", "#b83280",
)  # fmt: skip
"""Told apart when a screen is shown at half its size."""


def tool_sign(button: Box) -> tuple[int, int]:
    """Where the sign of a tool bar's button has its middle."""
    return button.x0 + 6 + TOOL_SIGN_PX // 2, button.centre[1]


@dataclass
class Canvas:
    """What the drawing functions share while one screen is drawn."""

    rng: random.Random
    theme: Theme
    image: Image.Image
    draw: ImageDraw.ImageDraw

    @classmethod
    def blank(
        cls, rng: random.Random, theme: Theme, size: tuple[int, int], fill: str | None = None
    ) -> Canvas:
        """An empty window in its theme's colour, or in `fill`."""
        image = Image.new("RGB", size, fill or theme.palette.window)
        return cls(rng, theme, image, ImageDraw.Draw(image))

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.image.size

    def step(self, up_to_px: int) -> int:
        """An offset on a raster of 4 px."""
        return self.rng.randrange(0, up_to_px + 1, 4)

    def text(
        self, at: tuple[int, int], text: str, size_px: int, *, bold: bool = False,
        ink: str | None = None, anchor: str = "lm", room_px: int | None = None,
    ) -> None:  # fmt: skip
        """Writes one line; what is longer than `room_px` loses its end."""
        font = self.theme.font(size_px, bold=bold)
        while room_px is not None and text and font.getlength(text) > room_px:
            text = text[:-1]
        self.draw.text(at, text, fill=ink or self.theme.palette.text, font=font, anchor=anchor)

    def panel(self, box: Box, fill: str | None = None) -> None:
        """A framed area in the panel's colour, or in `fill`."""
        colours = self.theme.palette
        self.draw.rectangle(box.edges, fill=fill or colours.panel, outline=colours.border)

    def title(self, text: str, height_px: int) -> None:
        """The bar at the top of a window, with its closing cross."""
        colours, width = self.theme.palette, self.size[0]
        self.draw.rectangle((0, 0, width, height_px - 1), fill=colours.accent)
        self.text((10, height_px // 2), text, 14, bold=True, ink=colours.on_accent)
        self.text((width - 18, height_px // 2), "X", 14, ink=colours.on_accent, anchor="mm")

    def button(self, box: Box, caption: str, size_px: int = 13) -> None:
        """A push button."""
        self.panel(box, self.theme.palette.button)
        self.text(box.centre, caption, size_px, bold=True, anchor="mm")

    def tool_button(self, box: Box, caption: str, look: int) -> None:
        """A tool bar's button: a small coloured sign, which is the tool's own, before its caption.

        Args:
            box: Of the whole button.
            caption: What it says.
            look: Of the sign; different for each tool of a bar.
        """
        self.panel(box, self.theme.palette.button)
        (x, y), half = tool_sign(box), TOOL_SIGN_PX // 2
        colour, round_ones = SIGN_COLOURS[look % len(SIGN_COLOURS)], look >= len(SIGN_COLOURS)
        shape = self.draw.ellipse if round_ones else self.draw.rectangle
        shape((x - half, y - half, x + half, y + half), fill=colour)
        left, right = x + half + 2, box.x1
        self.text(
            ((left + right) // 2, y), caption, 13, bold=True, anchor="mm", room_px=right - left
        )

    def input(self, box: Box, value: str = "") -> None:
        """A one-line input."""
        self.panel(box)
        self.text((box.x0 + 5, box.centre[1]), value, 12, room_px=box.x1 - box.x0 - 8)

    def scroll_bar(self, bar: Box) -> None:
        """A bar with its thumb anywhere; upright if it is higher than wide."""
        colours = self.theme.palette
        self.panel(bar, colours.header)
        upright = bar.y1 - bar.y0 > bar.x1 - bar.x0
        start, end = (bar.y0, bar.y1) if upright else (bar.x0, bar.x1)
        length = (end - start) // 4
        thumb = self.rng.randint(start + 2, end - length - 2)
        edges = (bar.x0 + 2, thumb, bar.x1 - 3, thumb + length)
        if not upright:
            edges = (thumb, bar.y0 + 2, thumb + length, bar.y1 - 3)
        self.draw.rectangle(edges, fill=colours.button, outline=colours.border)
