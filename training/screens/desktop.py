"""Draws a black desktop, 1914x1032 px: icons, task bar, and the loading splash; knows no tasks."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image

from training.screens import office_content as content
from training.screens.canvas import SIGN_COLOURS, Canvas
from training.screens.geometry import Box
from training.screens.theme import Theme, add_jpeg_noise, pick_theme

SIZE = (1914, 1032)
ICON_PX = 54
CELL_W_PX, CELL_H_PX = 104, 98
TASKBAR_PX = 40
SPLASH_SHARE = 0.35
PINNED = ("Start", "Search", "Files", "Browser", "Mail")
_CAPTION = "#f2f2f2"


@dataclass(frozen=True)
class DesktopScreen:
    """A drawn desktop and where everything on it is.

    Args:
        image: RGB.
        icons: Caption to icon and caption together, by row, then from the left; none of them is
            hidden by the splash.
        rows: The captions of each row that holds an icon, from the top and from the left.
        buttons: The task bar's buttons by caption.
        splash: The loading splash; None while nothing is loading.
        theme: What it was drawn with.
    """

    image: Image.Image
    icons: dict[str, Box]
    rows: tuple[tuple[str, ...], ...]
    buttons: dict[str, Box]
    splash: Box | None
    theme: Theme


def draw_desktop(
    rng: random.Random, *, theme: Theme | None = None, splash: bool | None = None
) -> DesktopScreen:
    """Draws one desktop.

    Args:
        rng: Decides everything that is not given.
        theme: One of `THEMES` if None.
        splash: Whether an application is loading; `SPLASH_SHARE` of the time if None. The same
            seed draws the same desktop with and without.

    Returns:
        The picture and the boxes of its parts.
    """
    theme = theme or pick_theme(rng)
    canvas = Canvas.blank(rng, theme, SIZE, fill=rng.choice(("#000000", "#000000", "#060608")))
    # Its place is drawn and kept free in any case: pixels under it are the only difference.
    loading, place = rng.random() < SPLASH_SHARE, _splash_place(rng)
    icons, rows = _draw_icons(canvas, place)
    buttons = _draw_taskbar(canvas)
    draw_it = loading if splash is None else splash
    name, done = rng.choice(content.ICONS), rng.uniform(0.1, 0.9)
    if draw_it:
        _draw_splash(canvas, place, name, done)
    image = add_jpeg_noise(canvas.image, rng, share=0.4)
    return DesktopScreen(image, icons, rows, buttons, place if draw_it else None, theme)


def _splash_place(rng: random.Random) -> Box:
    width, height = rng.randint(380, 560), rng.randint(200, 320)
    x = (SIZE[0] - width) // 2 + rng.randint(-160, 160)
    y = (SIZE[1] - height) // 2 + rng.randint(-120, 120)
    return Box(x, y, x + width, y + height)


def _draw_icons(
    canvas: Canvas, kept_free: Box
) -> tuple[dict[str, Box], tuple[tuple[str, ...], ...]]:
    """Icons in columns at the left edge, as arranged, or scattered, as people leave them."""
    rng = canvas.rng
    left, top = 8 + canvas.step(12), 8 + canvas.step(12)
    lines = (SIZE[1] - TASKBAR_PX - top) // CELL_H_PX
    cells = [(row, column) for column in range(18) for row in range(lines)]
    cells = [cell for cell in cells if not _overlaps(_cell(left, top, *cell), kept_free)]
    names = rng.sample(content.ICONS, rng.randint(12, 30))
    scattered = rng.random() < 0.5
    chosen = rng.sample(cells, len(names)) if scattered else cells[: len(names)]
    icons: dict[str, Box] = {}
    rows: dict[int, list[str]] = {}
    for (row, column), name in sorted(zip(chosen, names, strict=True)):
        cell = _cell(left, top, row, column)
        icons[name] = _draw_icon(canvas, cell, name)
        rows.setdefault(row, []).append(name)
    return icons, tuple(tuple(names) for names in rows.values())


def _cell(left: int, top: int, row: int, column: int) -> Box:
    x, y = left + column * CELL_W_PX, top + row * CELL_H_PX
    return Box(x, y, x + CELL_W_PX, y + CELL_H_PX)


def _overlaps(a: Box, b: Box) -> bool:
    return a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1


def _draw_icon(canvas: Canvas, cell: Box, name: str) -> Box:
    """A coloured tile with a sign on it and its caption below; returns both together."""
    middle, top = cell.centre[0], cell.y0 + 6
    tile = Box(middle - ICON_PX // 2, top, middle + ICON_PX // 2, top + ICON_PX)
    # An application has one look wherever its icon is, as on a real desktop.
    look = content.ICONS.index(name)
    canvas.draw.rounded_rectangle(tile.edges, radius=8, fill=SIGN_COLOURS[look % len(SIGN_COLOURS)])
    _draw_sign(canvas, tile, look, name)
    caption = (middle, tile.y1 + 14)
    canvas.text(caption, name, 13, ink=_CAPTION, anchor="mm", room_px=CELL_W_PX - 4)
    return Box(middle - 40, tile.y0, middle + 40, tile.y1 + 24)


def _draw_sign(canvas: Canvas, tile: Box, look: int, name: str) -> None:
    (x, y), white = tile.centre, "#ffffff"
    kind = look // len(SIGN_COLOURS) % 4
    if kind == 0:
        canvas.draw.ellipse((x - 16, y - 16, x + 16, y + 16), outline=white, width=4)
    elif kind == 1:
        canvas.draw.rectangle((x - 16, y - 18, x + 16, y + 18), outline=white, width=3)
        canvas.draw.line((x - 16, y - 9, x + 16, y - 9), fill=white, width=3)
    elif kind == 2:
        for bar, height in enumerate((12, 26, 18)):
            left = x - 17 + bar * 13
            canvas.draw.rectangle((left, y + 16 - height, left + 8, y + 16), fill=white)
    canvas.text((x, y), "" if kind == 2 else name[0], 20, bold=True, ink=white, anchor="mm")


def _draw_taskbar(canvas: Canvas) -> dict[str, Box]:
    rng, colours, buttons = canvas.rng, canvas.theme.palette, {}
    width, height = SIZE
    bar = Box(0, height - TASKBAR_PX, width, height)
    canvas.panel(bar, colours.header)
    start = canvas.step(24) if rng.random() < 0.5 else width // 2 - 240
    for index, caption in enumerate(PINNED):
        x = start + index * 96
        box = buttons[caption] = Box(x + 4, bar.y0 + 5, x + 92, bar.y1 - 5)
        canvas.button(box, caption)
    clock = f"{rng.randint(7, 18)}:{rng.randint(0, 59):02}"
    canvas.text((width - 16, bar.centre[1]), clock, 13, anchor="rm")
    return buttons


def _draw_splash(canvas: Canvas, box: Box, name: str, done: float) -> None:
    colours = canvas.theme.palette
    canvas.panel(box)
    band = Box(box.x0, box.y0, box.x1, box.y0 + (box.y1 - box.y0) // 2)
    canvas.draw.rectangle(band.edges, fill=colours.accent)
    canvas.text(band.centre, name, 26, bold=True, ink=colours.on_accent, anchor="mm")
    middle = (band.y1 + box.y1) // 2
    canvas.text((box.centre[0], middle - 14), "Loading, please wait...", 14, anchor="mm")
    track = Box(box.x0 + 30, middle + 6, box.x1 - 30, middle + 22)
    canvas.panel(track, colours.header)
    end = track.x0 + max(4, round((track.x1 - track.x0) * done))
    canvas.draw.rectangle((track.x0 + 1, track.y0 + 1, end, track.y1 - 2), fill=colours.accent)
