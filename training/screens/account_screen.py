"""Draws a patient's account, 1280x800 px: family grid, balances, ledger; knows no tasks.

The user's own size is not known; this one is no other expert's.
"""

from __future__ import annotations

import datetime
import random
from dataclasses import dataclass

from PIL import Image

from training.screens import office_content as content
from training.screens.canvas import BAR_PX, Canvas
from training.screens.claim_content import FIRST_NAMES, PROVIDERS
from training.screens.geometry import Box
from training.screens.theme import Theme, add_jpeg_noise, pick_theme

SIZE = (1280, 800)
TITLE_PX = 28
ROW_PX = 22
LEDGER_LINES = 20
FAMILY_LINES = 7
_LEFT_PX = 20
CAPTIONS = (
    "New Claim", "Payment", "Adjustment", "Statement", "Pay Plan", "Print", "Quick Proc",
    "Repeating", "Preauth",
)  # fmt: skip
_LEDGER = (
    ("#", 36), ("Date", 100), ("Patient", 110), ("Prov", 100), ("Code", 76), ("Tth", 46),
    ("Description", 330), ("Charge", 110), ("Credit", 110), ("Balance", 130),
)  # fmt: skip
_FAMILY = (("Patient", 220), ("Age", 60), ("Balance", 110))
_AGING = ("0-30", "31-60", "61-90", "Over 90", "Total", "Ins Est")


@dataclass(frozen=True)
class Entry:
    """One line of the ledger, numbered from 1 as drawn."""

    number: int
    date: datetime.date
    box: Box


@dataclass(frozen=True)
class AccountScreen:
    """A drawn account and where everything in it is.

    Args:
        image: RGB.
        entries: The ledger's lines from the top.
        ledger: The ledger with its column titles and scroll bar.
        members: (first name, surname) of each of the family to the row.
        family: The family grid with its column titles and scroll bar.
        buttons: By caption; `New Claim` is always there.
        theme: What it was drawn with.
    """

    image: Image.Image
    entries: tuple[Entry, ...]
    ledger: Box
    members: dict[tuple[str, str], Box]
    family: Box
    buttons: dict[str, Box]
    theme: Theme


def draw_account_screen(rng: random.Random, *, theme: Theme | None = None) -> AccountScreen:
    """Draws one account.

    Args:
        rng: Decides everything that is not given.
        theme: One of `THEMES` if None.

    Returns:
        The picture and the boxes of its parts.
    """
    theme = theme or pick_theme(rng)
    canvas = Canvas.blank(rng, theme, SIZE)
    count = rng.randint(2, FAMILY_LINES - 1)
    (_, surname), *_ = content.patients(rng, 1)
    firsts = rng.sample(FIRST_NAMES, count)
    canvas.title(f"Account - {surname}, {firsts[0]}", TITLE_PX)
    buttons = _draw_buttons(canvas)
    top = TITLE_PX + 68
    family, members = _draw_family(canvas, top, [(first, surname) for first in firsts])
    _draw_aging(canvas, Box(family.x1 + 40, top, family.x1 + 40 + 96 * len(_AGING), top + 48))
    ledger, entries = _draw_ledger(canvas, family.y1 + 36, firsts)
    image = add_jpeg_noise(canvas.image, rng, share=0.4)
    return AccountScreen(image, entries, ledger, members, family, buttons, theme)


def _draw_buttons(canvas: Canvas) -> dict[str, Box]:
    rng, buttons = canvas.rng, {}
    others = rng.sample(CAPTIONS[1:], rng.randint(4, len(CAPTIONS) - 1))
    captions = [CAPTIONS[0], *others]
    rng.shuffle(captions)
    left = 12 + canvas.step(60)
    for index, caption in enumerate(captions):
        x = left + index * 124
        box = buttons[caption] = Box(x, TITLE_PX + 20, x + 114, TITLE_PX + 50)
        canvas.tool_button(box, caption, CAPTIONS.index(caption))
    return buttons


def _draw_table(
    canvas: Canvas, at: tuple[int, int], columns: tuple[tuple[str, int], ...], lines: int
) -> Box:
    """An empty grid with column titles and a scroll bar."""
    x, y = at
    box = Box(x, y, x + sum(width for _, width in columns) + BAR_PX, y + (lines + 1) * ROW_PX)
    canvas.panel(box)
    titles = (box.x0, y, box.x1 - 1, y + ROW_PX - 1)
    canvas.draw.rectangle(titles, fill=canvas.theme.palette.header)
    _write_cells(canvas, (x, y), columns, [name for name, _ in columns], bold=True)
    for line in range(1, lines + 1):
        ruler = (x, y + line * ROW_PX, box.x1 - BAR_PX, y + line * ROW_PX)
        canvas.draw.line(ruler, fill=canvas.theme.palette.header)
    canvas.scroll_bar(Box(box.x1 - BAR_PX, y, box.x1, box.y1))
    return box


def _write_cells(
    canvas: Canvas, at: tuple[int, int], columns: tuple[tuple[str, int], ...],
    cells: list[str], *, bold: bool = False,
) -> None:  # fmt: skip
    x, y = at
    for (_, width), cell in zip(columns, cells, strict=True):
        canvas.text((x + 5, y + ROW_PX // 2), cell, 13, bold=bold, room_px=width - 8)
        x += width


def _draw_family(
    canvas: Canvas, top: int, people: list[tuple[str, str]]
) -> tuple[Box, dict[tuple[str, str], Box]]:
    rng, members = canvas.rng, {}
    box = _draw_table(canvas, (_LEFT_PX, top), _FAMILY, FAMILY_LINES)
    for line, person in enumerate(people, start=1):
        y = top + line * ROW_PX
        members[person] = Box(box.x0, y, box.x1 - BAR_PX, y + ROW_PX)
        first, surname = person
        cells = [f"{surname}, {first}", str(rng.randint(3, 89)), _money(rng)]
        _write_cells(canvas, (box.x0, y), _FAMILY, cells)
    return box, members


def _draw_aging(canvas: Canvas, box: Box) -> None:
    width = (box.x1 - box.x0) // len(_AGING)
    for index, title in enumerate(_AGING):
        x = box.x0 + index * width
        cell = Box(x, box.y0, x + width, box.y1)
        canvas.panel(cell)
        canvas.text((cell.centre[0], cell.y0 + 13), title, 12, bold=True, anchor="mm")
        canvas.text((cell.centre[0], cell.y0 + 34), _money(canvas.rng), 13, anchor="mm")


def _draw_ledger(canvas: Canvas, top: int, firsts: list[str]) -> tuple[Box, tuple[Entry, ...]]:
    rng, entries = canvas.rng, []
    box = _draw_table(canvas, (_LEFT_PX, top), _LEDGER, LEDGER_LINES)
    dates = content.dates(rng, rng.randint(8, LEDGER_LINES), apart_days=(1, 60))
    for number, date in enumerate(dates, start=1):
        y = top + number * ROW_PX
        row = Box(box.x0, y, box.x1 - BAR_PX, y + ROW_PX)
        code, description = rng.choice(content.CODES)
        charge, credit = (_money(rng), "") if rng.random() < 0.7 else ("", _money(rng))
        cells = [
            str(number), content.numeric(date), rng.choice(firsts), rng.choice(PROVIDERS), code,
            str(rng.randint(1, 32)), description, charge, credit, _money(rng),
        ]  # fmt: skip
        _write_cells(canvas, (box.x0, y), _LEDGER, cells)
        entries.append(Entry(number, date, row))
    return box, tuple(entries)


def _money(rng: random.Random) -> str:
    return f"{rng.randint(5, 980)}.{rng.choice(('00', '50', '25'))}"
