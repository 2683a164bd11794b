"""What may be asked of a drawn screen and what its expert answers; knows no file and no model.

The experts' conventions differ where the words do not, so that the wrong expert fails: "Click" and
"Open" are one click in the calendar and a double click in the claim window, "Select" is the other
way round, and "Scroll down one page" presses an arrow there and turns the wheel here.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from training.data.calls import ToolCall
from training.screens.calendar import ARROWS, CalendarScreen
from training.screens.claim_window import ClaimScreen
from training.screens.geometry import THOUSANDTHS, Box, to_thousandths

CALENDAR = "calendar"
CLAIM_WINDOW = "claim-window"
PAGE_PIXELS = 300

Screen = CalendarScreen | ClaimScreen


@dataclass(frozen=True)
class Task:
    """One instruction and its answer.

    Args:
        adapter: The expert whose task it is.
        task_type: As in the records' metadata.
        prompt: The instruction.
        calls: The answer.
        real_coords: Where the answer points, in pixels.
        tolerance: (x, y) in thousandths within which an answer still hits its target; None leaves
            it to the scoring's default.
        extras: Further metadata.
    """

    adapter: str
    task_type: str
    prompt: str
    calls: tuple[ToolCall, ...]
    real_coords: tuple[int, int]
    tolerance: tuple[int, int] | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)


def tasks_for(screen: Screen, rng: random.Random) -> list[Task]:
    """Lists every unambiguous task of a screen.

    Args:
        screen: What was drawn.
        rng: Decides the order.

    Returns:
        All tasks, the kinds taking turns: any beginning of the list holds each kind about equally
        often.
    """
    if isinstance(screen, CalendarScreen):
        return _take_turns(_calendar_tasks(screen), rng)
    return _take_turns(_claim_tasks(screen), rng)


def _take_turns(kinds: list[list[Task]], rng: random.Random) -> list[Task]:
    for tasks in kinds:
        rng.shuffle(tasks)
    mixed = []
    for turn in range(max(map(len, kinds))):
        due = [tasks[turn] for tasks in kinds if turn < len(tasks)]
        rng.shuffle(due)
        mixed += due
    return mixed


def _calendar_tasks(screen: CalendarScreen) -> list[list[Task]]:
    def press(
        task_type: str, prompt: str, box: Box, action: str = "left_click", **extras: Any
    ) -> Task:
        return _point(screen, CALENDAR, task_type, prompt, box, action, extras)

    def day_task(prompt: str, day: int, action: str = "left_click", **extras: Any) -> Task:
        date = f"{screen.year}-{screen.month:02}-{day:02}"
        box = screen.days[day]
        return press("click_calendar_day", prompt, box, action, target_date=date, **extras)

    month, buttons = screen.month_name, screen.buttons
    click = [day_task(f"Click {month} {day} in the calendar", day) for day in screen.days]
    select = [day_task(f"Select {month} {day}", day, "double_click") for day in screen.days]
    page = [
        press("click_calendar_button", f"Scroll {way} one page", box, scroll_direction=way)
        for way, box in (("down", buttons["next_month"]), ("up", buttons["previous_month"]))
    ]
    rows = [
        day_task(f"Open row {number}", first, row=number)
        for number, week in enumerate(screen.weeks, start=1)
        if (first := next((day for day in week if day), None))
    ]
    bottom = [
        press("click_bottom_buttons", f"Click the {caption} button", box, button=caption)
        for caption, box in ((name.capitalize(), box) for name, box in buttons.items())
        if caption.lower() not in ARROWS
    ]
    return [click, select, page, rows, bottom]


def _claim_tasks(screen: ClaimScreen) -> list[list[Task]]:
    def press(task_type: str, prompt: str, box: Box, action: str, **extras: Any) -> Task:
        return _point(screen, CLAIM_WINDOW, task_type, prompt, box, action, extras)

    def pick(name: str, box: Box) -> Task:
        prompt = f"Select {name} from the dropdown list"  # noqa: S608 - no SQL
        return press("provider-dropdown", prompt, box, "left_click", provider=name)

    scroll = [
        _scroll(screen, f"Scroll {way} one page{where}", pixels, way)
        for way, pixels in (("down", PAGE_PIXELS), ("up", -PAGE_PIXELS))
        for where in ("", " within the procedures grid.")
    ]
    rows = [
        press("open-row", f"{verb} row {row.number}", row.box, "double_click", row=row.number)
        for row in screen.rows
        for verb in ("Open", "Click")
    ]
    buttons = [
        press("click-claim-button", f"Click the {name} button", box, "double_click", button=name)
        for name, box in screen.buttons.items()
    ]
    kinds = [scroll, rows, buttons]
    if screen.dropdown:
        kinds.append([pick(name, box) for name, box in screen.dropdown.items()])
    return kinds


def _point(
    screen: Screen, adapter: str, task_type: str, prompt: str, box: Box, action: str,
    extras: Mapping[str, Any],
) -> Task:  # fmt: skip
    width, height = screen.image.size
    call = ToolCall.computer_use(action, coordinate=_coordinate(screen, box))
    # Inside the target is right: half of its sides, rounded down.
    tolerance = (
        (box.x1 - box.x0) * THOUSANDTHS // (2 * width),
        (box.y1 - box.y0) * THOUSANDTHS // (2 * height),
    )
    return Task(adapter, task_type, prompt, (call,), box.centre, tolerance, extras)


def _scroll(screen: ClaimScreen, prompt: str, pixels: int, way: str) -> Task:
    call = ToolCall.computer_use(
        "scroll", coordinate=_coordinate(screen, screen.grid), pixels=pixels
    )
    centre = screen.grid.centre
    return Task(
        CLAIM_WINDOW, "scroll-grid", prompt, (call,), centre, extras={"scroll_direction": way}
    )


def _coordinate(screen: Screen, box: Box) -> list[int]:
    return list(to_thousandths(*box.centre, *screen.image.size))
