"""What may be asked of a drawn screen and what its expert answers; knows no file and no model.

The experts' conventions differ where the words do not, so that the wrong expert fails: "Click" and
"Open" are one click in the calendar and a double click in the claim window, "Select" is the other
way round, and "Scroll down one page" presses an arrow there, turns the wheel here, and has nothing
to scroll on the desktop.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from training.screens.account_screen import AccountScreen
from training.screens.appointment import AppointmentScreen
from training.screens.calendar import CalendarScreen
from training.screens.chart_screen import ChartScreen
from training.screens.claim_window import ClaimScreen
from training.screens.desktop import DesktopScreen
from training.screens.login_window import LoginScreen
from training.screens.tasks.account_screen import ACCOUNT_SCREEN, account_tasks
from training.screens.tasks.appointment import APPOINTMENT, appointment_tasks
from training.screens.tasks.calendar import CALENDAR, calendar_tasks
from training.screens.tasks.chart_screen import CHART_SCREEN, chart_tasks
from training.screens.tasks.claim_window import CLAIM_WINDOW, claim_tasks
from training.screens.tasks.core import NO_MATCH, PAGE_PIXELS, Task
from training.screens.tasks.desktop import DESKTOP, desktop_tasks
from training.screens.tasks.login_window import LOGIN_WINDOW, login_tasks

__all__ = [
    "ACCOUNT_SCREEN",
    "APPOINTMENT",
    "CALENDAR",
    "CHART_SCREEN",
    "CLAIM_WINDOW",
    "DESKTOP",
    "LOGIN_WINDOW",
    "NO_MATCH",
    "PAGE_PIXELS",
    "Screen",
    "Task",
    "tasks_for",
]

Screen = (
    CalendarScreen
    | ClaimScreen
    | AppointmentScreen
    | LoginScreen
    | DesktopScreen
    | ChartScreen
    | AccountScreen
)

_KINDS: Mapping[type, Callable[[Any, random.Random], list[list[Task]]]] = MappingProxyType(
    {
        CalendarScreen: calendar_tasks,
        ClaimScreen: claim_tasks,
        AppointmentScreen: appointment_tasks,
        LoginScreen: login_tasks,
        DesktopScreen: desktop_tasks,
        ChartScreen: chart_tasks,
        AccountScreen: account_tasks,
    }
)


def tasks_for(screen: Screen, rng: random.Random) -> list[Task]:
    """Lists the unambiguous tasks of a screen.

    Args:
        screen: What was drawn.
        rng: Decides the order, and which absent dates and people are asked for.

    Returns:
        All tasks, the kinds taking turns: any beginning of the list holds each kind about equally
        often.
    """
    return _take_turns(_KINDS[type(screen)](screen, rng), rng)


def _take_turns(kinds: list[list[Task]], rng: random.Random) -> list[Task]:
    for tasks in kinds:
        rng.shuffle(tasks)
    mixed = []
    for turn in range(max(map(len, kinds))):
        due = [tasks[turn] for tasks in kinds if turn < len(tasks)]
        rng.shuffle(due)
        mixed += due
    return mixed
