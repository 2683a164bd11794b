"""Draws the month widget, 225x208 or 380x352 px; knows no tasks."""

from __future__ import annotations

import calendar
import random
from dataclasses import dataclass, field

from PIL import Image, ImageDraw

from training.screens.geometry import Box
from training.screens.theme import Theme, add_jpeg_noise, pick_theme

SMALL = (225, 208)
LARGE = (380, 352)
COLUMNS = 7
ROWS = 6
MONTHS = tuple(calendar.month_name)[1:]
WEEKDAYS = ("Su", "Mo", "Tu", "We", "Th", "Fr", "Sa")
ARROWS = ("previous_year", "previous_month", "next_month", "next_year")
VIEWS = ("Day", "Week", "Month", "Year")
_ARROW_TEXT = {
    "previous_year": "<<",
    "previous_month": "<",
    "next_month": ">",
    "next_year": ">>",
}
_FIRST_YEAR, _LAST_YEAR = 2019, 2031


@dataclass(frozen=True)
class CalendarScreen:
    """A drawn month and where everything in it is.

    Args:
        image: RGBA.
        year: Four digits.
        month: 1-12.
        today: The day with the Today box around it, if it is in this month.
        days: Cell of each day of the month; days of the neighbours are not in it.
        weeks: Six rows of seven, Sunday first; None where the month has no day.
        buttons: The four arrows, `today`, and the view buttons by lower-cased caption.
        theme: What it was drawn with.
    """

    image: Image.Image
    year: int
    month: int
    today: int | None
    days: dict[int, Box]
    weeks: tuple[tuple[int | None, ...], ...]
    buttons: dict[str, Box]
    theme: Theme

    @property
    def month_name(self) -> str:
        """E.g. `December`."""
        return MONTHS[self.month - 1]


@dataclass
class _Canvas:
    """What the drawing functions share while one month is drawn."""

    rng: random.Random
    theme: Theme
    draw: ImageDraw.ImageDraw
    width: int
    height: int
    scale: float
    bold_days: bool
    day_px: int
    buttons: dict[str, Box] = field(default_factory=dict)

    def px(self, at_small_size: float) -> int:
        return round(at_small_size * self.scale)


def draw_calendar(
    rng: random.Random, *, theme: Theme | None = None, size: tuple[int, int] | None = None
) -> CalendarScreen:
    """Draws one month.

    Args:
        rng: Decides everything that is not given.
        theme: One of `THEMES` if None.
        size: (width, height) in pixels; `SMALL` three times out of four if None.

    Returns:
        The picture and the boxes of its parts.
    """
    theme = theme or pick_theme(rng)
    width, height = size or (SMALL if rng.random() < 0.75 else LARGE)
    year, month = rng.randint(_FIRST_YEAR, _LAST_YEAR), rng.randint(1, 12)
    weeks = month_weeks(year, month)
    last = calendar.monthrange(year, month)[1]
    today = rng.randint(1, last) if rng.random() < 0.5 else None

    image = Image.new("RGB", (width, height), theme.palette.panel)
    scale = min(width / SMALL[0], height / SMALL[1])
    bold, day_px = rng.random() < 0.5, round(rng.choice((13, 14)) * scale)
    canvas = _Canvas(rng, theme, ImageDraw.Draw(image), width, height, scale, bold, day_px)
    grid = _place_grid(canvas)
    _draw_heading(canvas, grid, f"{MONTHS[month - 1]} {year}")
    _draw_weekdays(canvas, grid)
    days = _draw_days(canvas, grid, weeks, today)
    if rng.random() < 0.4:
        _draw_neighbours(canvas, grid, weeks, year, month)
    _draw_bottom_row(canvas, grid)
    image = add_jpeg_noise(image, rng, share=0.4)
    return CalendarScreen(
        image.convert("RGBA"), year, month, today, days, weeks, canvas.buttons, theme
    )


def month_weeks(year: int, month: int) -> tuple[tuple[int | None, ...], ...]:
    """The month as six rows of seven, Sunday first, None where it has no day."""
    rows = calendar.Calendar(firstweekday=calendar.SUNDAY).monthdayscalendar(year, month)
    rows += [[0] * COLUMNS] * (ROWS - len(rows))
    return tuple(tuple(day or None for day in row) for row in rows)


def _place_grid(canvas: _Canvas) -> Box:
    """The 6x7 cells: about the same place each time, a few pixels and a cell size off."""
    rng = canvas.rng
    cell_w = canvas.px(rng.choice((29.0, 30.0, 31.0)))
    cell_h = canvas.px(rng.choice((20.0, 20.5, 21.0)))
    left = (canvas.width - COLUMNS * cell_w) // 2 + rng.randint(-3, 3)
    top = canvas.px(46) + rng.randint(-3, 3)
    return Box(left, top, left + COLUMNS * cell_w, top + ROWS * cell_h)


def _cell(grid: Box, row: int, column: int) -> Box:
    cell_w, cell_h = (grid.x1 - grid.x0) // COLUMNS, (grid.y1 - grid.y0) // ROWS
    x, y = grid.x0 + column * cell_w, grid.y0 + row * cell_h
    return Box(x, y, x + cell_w, y + cell_h)


def _draw_heading(canvas: _Canvas, grid: Box, title: str) -> None:
    colours, px = canvas.theme.palette, canvas.px
    bottom = grid.y0 - px(18)
    canvas.draw.rectangle((0, 0, canvas.width - 1, bottom - 1), fill=colours.header)
    middle = bottom // 2
    side, gap = px(21), px(2)
    for index, name in enumerate(ARROWS):
        left = grid.x0 + index * (side + gap)
        if index >= 2:
            left = grid.x1 - (4 - index) * (side + gap) + gap
        box = Box(left, middle - px(10), left + side, middle + px(10))
        canvas.buttons[name] = box
        _draw_button(canvas, box, _ARROW_TEXT[name], px(12))
    # "September 2026" between the arrows leaves about 117 px at the small size.
    font = canvas.theme.font(px(12), bold=True)
    room = grid.x1 - grid.x0 - 4 * (side + gap) - gap
    if font.getlength(title) > room:
        font = canvas.theme.font(px(11), bold=False)
    centre = ((grid.x0 + grid.x1) // 2, middle)
    canvas.draw.text(centre, title, fill=colours.text, font=font, anchor="mm")


def _draw_button(canvas: _Canvas, box: Box, caption: str, size_px: int) -> None:
    colours = canvas.theme.palette
    canvas.draw.rectangle(box.edges, fill=colours.button, outline=colours.border)
    font = canvas.theme.font(size_px, bold=True)
    canvas.draw.text(box.centre, caption, fill=colours.text, font=font, anchor="mm")


def _draw_weekdays(canvas: _Canvas, grid: Box) -> None:
    font = canvas.theme.font(canvas.px(10))
    middle = grid.y0 - canvas.px(9)
    for column, name in enumerate(WEEKDAYS):
        x = _cell(grid, 0, column).centre[0]
        canvas.draw.text(
            (x, middle), name, fill=canvas.theme.palette.accent, font=font, anchor="mm"
        )
    canvas.draw.line((grid.x0, grid.y0 - 1, grid.x1, grid.y0 - 1), fill=canvas.theme.palette.border)


def _draw_days(
    canvas: _Canvas, grid: Box, weeks: tuple[tuple[int | None, ...], ...], today: int | None
) -> dict[int, Box]:
    colours, boxes = canvas.theme.palette, {}
    font = canvas.theme.font(canvas.day_px, bold=canvas.bold_days)
    selected = canvas.rng.choice((None, canvas.rng.randint(1, 28)))
    for row, week in enumerate(weeks):
        for column, day in enumerate(week):
            if day is None:
                continue
            box = boxes[day] = _cell(grid, row, column)
            ink = colours.text
            if day == selected:
                canvas.draw.rectangle(box.edges, fill=colours.accent)
                ink = colours.on_accent
            if day == today:
                canvas.draw.rectangle(box.edges, outline="#e02020", width=max(1, canvas.px(1)))
            canvas.draw.text(box.centre, str(day), fill=ink, font=font, anchor="mm")
    return boxes


def _draw_neighbours(
    canvas: _Canvas, grid: Box, weeks: tuple[tuple[int | None, ...], ...], year: int, month: int
) -> None:
    """Days of the months before and after, in the faint colour that nobody is asked to click."""
    previous_year, previous_month = (year, month - 1) if month > 1 else (year - 1, 12)
    last = calendar.monthrange(previous_year, previous_month)[1]
    lead = weeks[0].index(1)
    font = canvas.theme.font(canvas.day_px)
    following = 0
    for row, week in enumerate(weeks):
        for column, day in enumerate(week):
            if day is not None:
                continue
            if row == 0 and column < lead:
                number = last - lead + column + 1
            else:
                following += 1
                number = following
            canvas.draw.text(
                _cell(grid, row, column).centre,
                str(number),
                fill=canvas.theme.palette.faint,
                font=font,
                anchor="mm",
            )


def _draw_bottom_row(canvas: _Canvas, grid: Box) -> None:
    """The Today box and three view buttons."""
    rng, px = canvas.rng, canvas.px
    views = [VIEWS[index] for index in sorted(rng.sample(range(len(VIEWS)), 3))]
    captions = ["Today", *views] if rng.random() < 0.5 else [*views, "Today"]
    top = min(grid.y1 + px(3), canvas.height - px(24))
    share = (grid.x1 - grid.x0) // len(captions)
    for index, caption in enumerate(captions):
        left = grid.x0 + index * share
        box = Box(left + 1, top, left + share - 1, min(top + px(22), canvas.height - 1))
        canvas.buttons[caption.lower()] = box
        _draw_button(canvas, box, caption, px(12))
