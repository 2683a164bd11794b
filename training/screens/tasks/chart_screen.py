"""Tasks of the progress notes; knows no pixels.

A date is scrolled to in the direction in which the notes' own dates run. One that is shown needs
no scrolling, and one that lies between two neighbours without being there cannot be reached.
"""

from __future__ import annotations

import datetime
import itertools
import random

from training.data.calls import ToolCall
from training.screens import office_content as content
from training.screens.chart_screen import ChartScreen
from training.screens.tasks.core import Asker, Task

CHART_SCREEN = "chart-screen"
_BEYOND = 3
_FARTHEST_DAYS = 900


def chart_tasks(screen: ChartScreen, rng: random.Random) -> list[list[Task]]:
    """Pages, dates, notes by row and by date, and buttons; each kind a list."""
    ask = Asker(CHART_SCREEN, screen.image.size)
    scroll = [
        ask.scroll("scroll-notes", f"Scroll {way} one page", screen.notes_box, way)
        for way in ("down", "up")
    ]
    rows = [
        ask.point("open-note", f"{verb} row {number}", note.heading, action, row=number)
        for number, note in enumerate(screen.notes, start=1)
        for verb, action in (("Click", "left_click"), ("Open", "double_click"))
    ]
    days = [content.spoken(note.date) for note in screen.notes]
    select = [
        ask.point("select-note", f"Select {day}", note.heading, local=True)
        for day, note in zip(days, screen.notes, strict=True)
        if days.count(day) == 1
    ]
    buttons = [
        ask.point("click-chart-button", f"Click the {name} button", box, local=True, button=name)
        for name, box in screen.buttons.items()
    ]
    return [scroll, rows, select, buttons, *_dates(ask, screen, rng)]


def _dates(ask: Asker, screen: ChartScreen, rng: random.Random) -> list[list[Task]]:
    """Dates beyond the page, on it, and missing from it."""
    dates = sorted(note.date for note in screen.notes)
    older, newer = ("down", "up") if screen.newest_first else ("up", "down")
    beyond = [
        _scroll_to(ask, screen, day, way)
        for edge, sign, way in ((dates[0], -1, older), (dates[-1], 1, newer))
        for distance in sorted(rng.sample(range(1, _FARTHEST_DAYS), _BEYOND))
        for day in (edge + sign * datetime.timedelta(days=distance),)
    ]
    done = ToolCall.computer_use("terminate", status="success")
    shown = [
        ask.reply(
            "scroll-to-date", _ask_for(note.date), done, note.heading,
            local=True, target_date=note.date.isoformat(),
        )
        for note in screen.notes
    ]  # fmt: skip
    failed = ToolCall.computer_use("terminate", status="failure")
    absent = [
        ask.reply(
            "scroll-to-date", _ask_for(day), failed, screen.notes_box, target_date=day.isoformat()
        )
        for before, after in itertools.pairwise(dates)
        for day in (before + (after - before) * rng.uniform(0.3, 0.7),)
    ]
    return [beyond, shown, absent]


def _scroll_to(ask: Asker, screen: ChartScreen, day: datetime.date, way: str) -> Task:
    return ask.scroll(
        "scroll-to-date", _ask_for(day), screen.notes_box, way, target_date=day.isoformat()
    )


def _ask_for(day: datetime.date) -> str:
    """In figures or in words, by the day, so that a date is asked for in one way only."""
    figures = day.toordinal() % 2
    return f"Scroll to {content.numeric(day) if figures else f'{content.spoken(day)}, {day.year}'}"
