"""Draws a patient's dated progress notes, 696x651 px; knows no tasks."""

from __future__ import annotations

import datetime
import random
from dataclasses import dataclass

from PIL import Image

from training.screens import office_content as content
from training.screens.canvas import BAR_PX, Canvas
from training.screens.claim_content import PROVIDERS
from training.screens.geometry import Box
from training.screens.theme import Theme, add_jpeg_noise, pick_theme

SIZE = (696, 651)
TITLE_PX = 28
LINE_PX = 19
PAGER = ("First", "Previous", "Next", "Last")
TOOLS = ("Print", "Add Note", "Sign", "Filter")


@dataclass(frozen=True)
class Note:
    """One progress note: its date, its heading line, and the whole of it."""

    date: datetime.date
    heading: Box
    box: Box


@dataclass(frozen=True)
class ChartScreen:
    """Drawn notes and where everything is.

    Args:
        image: RGB.
        notes: From the top, at least four, each with a date of its own.
        newest_first: Whether dates fall from the top; the notes themselves show it.
        notes_box: The list with its scroll bar.
        buttons: Pager and tool buttons by caption.
        theme: What it was drawn with.
    """

    image: Image.Image
    notes: tuple[Note, ...]
    newest_first: bool
    notes_box: Box
    buttons: dict[str, Box]
    theme: Theme


def draw_chart_screen(rng: random.Random, *, theme: Theme | None = None) -> ChartScreen:
    """Draws one page of notes.

    Args:
        rng: Decides everything that is not given.
        theme: One of `THEMES` if None.

    Returns:
        The picture and the boxes of its parts.
    """
    theme = theme or pick_theme(rng)
    canvas = Canvas.blank(rng, theme, SIZE)
    ((first, surname),) = content.patients(rng, 1)
    canvas.title(f"Chart - {surname}, {first}", TITLE_PX)
    top = TITLE_PX + 52
    frame = Box(12, top, SIZE[0] - 12, SIZE[1] - 52)
    canvas.panel(frame)
    newest_first = rng.random() < 0.5
    notes = _draw_notes(canvas, frame, newest_first)
    canvas.scroll_bar(Box(frame.x1 - BAR_PX, frame.y0, frame.x1, frame.y1))
    buttons = _draw_tools(canvas) | _draw_pager(canvas, frame.y1 + 12)
    image = add_jpeg_noise(canvas.image, rng, share=0.4)
    return ChartScreen(image, notes, newest_first, frame, buttons, theme)


def _draw_notes(canvas: Canvas, frame: Box, newest_first: bool) -> tuple[Note, ...]:
    rng, colours, notes = canvas.rng, canvas.theme.palette, []
    # Days apart, so that there are dates between two neighbours which no note has.
    dates = content.dates(rng, 12, apart_days=(4, 160))
    y = frame.y0 + 4
    for date in reversed(dates) if newest_first else dates:
        lines = rng.randint(1, 4)
        end = y + (lines + 1) * LINE_PX + 6
        if end > frame.y1:
            break
        box = Box(frame.x0 + 1, y, frame.x1 - BAR_PX, end)
        heading = Box(box.x0, y, box.x1, y + LINE_PX)
        canvas.draw.rectangle(heading.edges, fill=colours.header)
        middle = heading.centre[1]
        canvas.text((box.x0 + 8, middle), content.numeric(date), 13, bold=True)
        canvas.text((box.x0 + 110, middle), rng.choice(PROVIDERS), 13, ink=colours.accent)
        canvas.text((box.x0 + 220, middle), " ".join(rng.choice(content.CODES)), 13)
        for line, words in enumerate(rng.sample(content.NOTE_LINES, lines), start=1):
            canvas.text((box.x0 + 16, middle + line * LINE_PX), words, 13)
        notes.append(Note(date, heading, box))
        y = end
    return tuple(notes)


def _draw_tools(canvas: Canvas) -> dict[str, Box]:
    rng, buttons = canvas.rng, {}
    left = 10 + canvas.step(40)
    for index, caption in enumerate(rng.sample(TOOLS, rng.randint(2, len(TOOLS)))):
        x = left + index * 100
        box = buttons[caption] = Box(x, TITLE_PX + 8, x + 92, TITLE_PX + 34)
        canvas.button(box, caption)
    return buttons


def _draw_pager(canvas: Canvas, top: int) -> dict[str, Box]:
    rng, buttons = canvas.rng, {}
    pages = rng.randint(3, 20)
    left = 16 + canvas.step(80)
    for index, caption in enumerate(PAGER):
        # "Page 2 of 7" stands in the middle of the four.
        x = left + index * 92 + (120 if index >= 2 else 0)
        box = buttons[caption] = Box(x, top, x + 86, top + 28)
        canvas.button(box, caption)
    caption = f"Page {rng.randint(1, pages)} of {pages}"
    canvas.text((left + 240, top + 14), caption, 13, anchor="mm")
    return buttons
