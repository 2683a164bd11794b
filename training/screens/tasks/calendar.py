"""Tasks of the month widget; knows no pixels."""

from __future__ import annotations

import random
from typing import Any

from training.screens.calendar import ARROWS, CalendarScreen
from training.screens.tasks.core import Asker, Task

CALENDAR = "calendar"


def calendar_tasks(screen: CalendarScreen, _: random.Random) -> list[list[Task]]:
    """Days by name, pages, rows, the arrows and the bottom row; each kind a list."""
    ask = Asker(CALENDAR, screen.image.size)

    def day_task(
        prompt: str, day: int, action: str = "left_click", *, local: bool = True, **extras: Any
    ) -> Task:
        date = f"{screen.year}-{screen.month:02}-{day:02}"
        extras = {"target_date": date, **extras}
        return ask.point(
            "click_calendar_day", prompt, screen.days[day], action, local=local, **extras
        )

    month, buttons = screen.month_name, screen.buttons
    click = [day_task(f"Click {month} {day} in the calendar", day) for day in screen.days]
    select = [day_task(f"Select {month} {day}", day, "double_click") for day in screen.days]
    page = [
        ask.point("click_calendar_button", f"Scroll {way} one page", box, scroll_direction=way)
        for way, box in (("down", buttons["next_month"]), ("up", buttons["previous_month"]))
    ]
    rows = [
        day_task(f"Open row {number}", first, local=False, row=number)
        for number, week in enumerate(screen.weeks, start=1)
        if (first := next((day for day in week if day), None))
    ]

    def button(task_type: str, name: str, caption: str) -> Task:
        prompt = f"Click the {caption} button"
        return ask.point(task_type, prompt, buttons[name], local=True, button=caption)

    top = [button("click_top_buttons", name, name.replace("_", " ")) for name in ARROWS]
    bottom = [
        button("click_bottom_buttons", name, name.capitalize())
        for name in buttons
        if name not in ARROWS
    ]
    return [click, select, page, rows, top, bottom]
