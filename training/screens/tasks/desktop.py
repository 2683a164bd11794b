"""Tasks of the desktop; knows no pixels.

While an application is loading every answer is to wait: the same words, decided by the splash.
"""

from __future__ import annotations

import random
from dataclasses import replace

from training.data.calls import ToolCall
from training.screens.desktop import DesktopScreen
from training.screens.geometry import Box
from training.screens.tasks.core import Asker, Task

DESKTOP = "desktop"
WAIT_S = 3.0


def desktop_tasks(screen: DesktopScreen, _: random.Random) -> list[list[Task]]:
    """Icons by caption and by row, the task bar, and pages of nothing; each kind a list."""
    kinds = _idle_tasks(screen)
    if screen.splash is None:
        return kinds
    # As many as without the splash, but one kind: there is only one answer.
    return [[_wait(task, screen.splash) for tasks in kinds for task in tasks]]


def _idle_tasks(screen: DesktopScreen) -> list[list[Task]]:
    ask = Asker(DESKTOP, screen.image.size)
    ways = (
        ("open-icon", "Open {}", "double_click"),
        ("open-icon", "Double-click the {} icon", "double_click"),
        ("select-icon", "Select {}", "left_click"),
        ("hover-icon", "Hover over {}", "mouse_move"),
    )
    icons = [
        [
            ask.point(task_type, words.format(name), box, action, local=True, icon=name)
            for name, box in screen.icons.items()
        ]
        for task_type, words, action in ways
    ]
    rows = [
        ask.point("open-icon-row", f"Open row {number}", screen.icons[names[0]], "double_click",
                  row=number)
        for number, names in enumerate(screen.rows, start=1)
    ]  # fmt: skip
    taskbar = [
        ask.point("click-taskbar", f"Click the {name} button", box, local=True, button=name)
        for name, box in screen.buttons.items()
    ]
    nothing_scrolls = ToolCall.computer_use("terminate", status="failure")
    everywhere = Box(0, 0, *screen.image.size)
    scroll = [
        ask.reply("scroll-desktop", f"Scroll {way} one page", nothing_scrolls, everywhere)
        for way in ("down", "up")
    ]
    return [*icons, rows, taskbar, scroll]


def _wait(task: Task, splash: Box) -> Task:
    call = ToolCall.computer_use("wait", time=WAIT_S)
    return replace(
        task, task_type="wait-loading", calls=(call,), target=splash, tolerance=None, local=True
    )
