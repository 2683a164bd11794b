"""Draws the day's schedule, 1640x930 px: 18 columns of appointments; knows no tasks."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image

from training.screens import office_content as content
from training.screens.canvas import BAR_PX, Canvas
from training.screens.geometry import Box
from training.screens.theme import Theme, add_jpeg_noise, pick_theme

SIZE = (1640, 930)
COLUMNS = 18
SLOT_PX = 18
SLOT_MINUTES = 15
TITLE_PX = 28
GUTTER_PX = 52
HEADER_PX = 24
CIRCLE_PX = 10
CAPTIONS = ("Today", "Day", "Week", "Month", "Print", "Search", "Find Time", "Reports")
_FILLS = ("#cfe8ff", "#d9f2d9", "#ffe3c2", "#e9d9f7", "#fff3b0", "#f9d4d4", "#d2efec")
_INK = "#101820"  # on every one of the fills, whatever the theme


@dataclass(frozen=True)
class Appointment:
    """One coloured block.

    Args:
        patient: (first name, surname); nobody is on a screen twice.
        time: When it begins, e.g. `9:30`.
        column: Caption of its column.
        status: Key of `STATUSES`, the colour of its circle.
        box: The block.
        circle: The status circle.
    """

    patient: tuple[str, str]
    time: str
    column: str
    status: str
    box: Box
    circle: Box


@dataclass(frozen=True)
class AppointmentScreen:
    """A drawn day and where everything in it is.

    Args:
        image: RGB.
        appointments: By column, then time.
        times: The times of the lines from the top.
        columns: Column header by caption.
        grid: The columns without headers, gutter and scroll bars.
        buttons: By caption.
        theme: What it was drawn with.
    """

    image: Image.Image
    appointments: tuple[Appointment, ...]
    times: tuple[str, ...]
    columns: dict[str, Box]
    grid: Box
    buttons: dict[str, Box]
    theme: Theme


def draw_appointment(rng: random.Random, *, theme: Theme | None = None) -> AppointmentScreen:
    """Draws one day.

    Args:
        rng: Decides everything that is not given.
        theme: One of `THEMES` if None.

    Returns:
        The picture and the boxes of its parts.
    """
    theme = theme or pick_theme(rng)
    canvas = Canvas.blank(rng, theme, SIZE)
    (date,) = content.dates(rng, 1, apart_days=(1, 1))
    canvas.title(f"Appointments - {date:%A}, {content.spoken(date)}, {date.year}", TITLE_PX)
    buttons = _draw_buttons(canvas)
    top = TITLE_PX + 52 + HEADER_PX
    width = (SIZE[0] - GUTTER_PX - BAR_PX) // COLUMNS
    slots = (SIZE[1] - BAR_PX - 4 - top) // SLOT_PX
    grid = Box(GUTTER_PX, top, GUTTER_PX + COLUMNS * width, top + slots * SLOT_PX)
    times = _draw_lines(canvas, grid, slots)
    columns = _draw_columns(canvas, grid, width)
    appointments = _draw_appointments(canvas, grid, columns, times)
    canvas.scroll_bar(Box(grid.x1, grid.y0, grid.x1 + BAR_PX, grid.y1))
    canvas.scroll_bar(Box(grid.x0, grid.y1, grid.x1, grid.y1 + BAR_PX))
    image = add_jpeg_noise(canvas.image, rng, share=0.4)
    return AppointmentScreen(image, appointments, times, columns, grid, buttons, theme)


def _draw_buttons(canvas: Canvas) -> dict[str, Box]:
    buttons = {}
    captions = canvas.rng.sample(CAPTIONS, canvas.rng.randint(5, len(CAPTIONS)))
    left, top = 12 + canvas.step(80), TITLE_PX + 8
    for index, caption in enumerate(captions):
        x = left + index * 124
        box = buttons[caption] = Box(x, top, x + 114, top + 28)
        canvas.tool_button(box, caption, CAPTIONS.index(caption))
    return buttons


def _draw_lines(canvas: Canvas, grid: Box, slots: int) -> tuple[str, ...]:
    """The times in the gutter and a line each hour."""
    colours, times = canvas.theme.palette, []
    canvas.panel(grid)
    minute = 60 * canvas.rng.randint(6, 9)
    for slot in range(slots):
        y = grid.y0 + slot * SLOT_PX
        time = f"{minute // 60}:{minute % 60:02}"
        on_hour = minute % 60 == 0
        ink = colours.border if on_hour else colours.header
        canvas.draw.line((grid.x0, y, grid.x1 - 1, y), fill=ink)
        at = (grid.x0 - 6, y + SLOT_PX // 2)
        canvas.text(at, time, 12 if on_hour else 11, bold=on_hour, anchor="rm")
        times.append(time)
        minute += SLOT_MINUTES
    return tuple(times)


def _draw_columns(canvas: Canvas, grid: Box, width: int) -> dict[str, Box]:
    colours, columns = canvas.theme.palette, {}
    word = canvas.rng.choice(("Op", "Chair", "Room"))
    for number in range(1, COLUMNS + 1):
        x = grid.x0 + (number - 1) * width
        box = columns[f"{word} {number}"] = Box(x, grid.y0 - HEADER_PX, x + width, grid.y0)
        canvas.panel(box, colours.header)
        canvas.text(box.centre, f"{word} {number}", 12, bold=True, anchor="mm")
        canvas.draw.line((x, grid.y0, x, grid.y1 - 1), fill=colours.border)
    return columns


def _draw_appointments(
    canvas: Canvas, grid: Box, columns: dict[str, Box], times: tuple[str, ...]
) -> tuple[Appointment, ...]:
    rng, drawn = canvas.rng, []
    # Some people have no appointment, so that they can be asked for in vain.
    strangers = iter(content.patients(rng, 90))
    for column, header in columns.items():
        slot = rng.randint(0, 12)
        while slot + 3 <= len(times) and (patient := next(strangers, None)):
            length = min(rng.choice((3, 3, 4, 4, 6)), len(times) - slot)
            top = grid.y0 + slot * SLOT_PX
            box = Box(header.x0 + 2, top + 1, header.x1 - 2, top + length * SLOT_PX - 1)
            drawn.append(_draw_block(canvas, patient, times[slot], column, box))
            slot += length + rng.randint(0, 20)
    return tuple(drawn)


def _draw_block(
    canvas: Canvas, patient: tuple[str, str], time: str, column: str, box: Box
) -> Appointment:
    rng = canvas.rng
    first, surname = patient
    status = rng.choice(tuple(content.STATUSES))
    canvas.draw.rectangle(box.edges, fill=rng.choice(_FILLS), outline=_INK)
    left, top = box.x0 + 4, box.y0 + 10
    circle = Box(left, top - CIRCLE_PX // 2, left + CIRCLE_PX, top + CIRCLE_PX // 2)
    canvas.draw.ellipse(circle.edges, fill=content.STATUSES[status], outline=_INK)
    room = box.x1 - box.x0 - 6
    lines = ((time, True), (surname, True), (first, False), (rng.choice(content.VISITS), False))
    canvas.text((left + CIRCLE_PX + 4, top), lines[0][0], 11, bold=True, ink=_INK)
    for index, (line, bold) in enumerate(lines[1:], start=1):
        y = top + index * 14
        if y + 6 < box.y1:
            canvas.text((left, y), line, 11, bold=bold, ink=_INK, room_px=room)
    return Appointment(patient, time, column, status, box, circle)
