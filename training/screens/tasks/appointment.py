"""Tasks of the day's schedule; knows no pixels.

What is asked for and is not there is answered in words: nothing on the screen may be clicked.
"""

from __future__ import annotations

import random

from training.data.calls import ToolCall
from training.screens import office_content as content
from training.screens.appointment import Appointment, AppointmentScreen
from training.screens.tasks.core import NO_MATCH, Asker, Task

APPOINTMENT = "appointment"
_ABSENT = 4


def appointment_tasks(screen: AppointmentScreen, rng: random.Random) -> list[list[Task]]:
    """Appointments by patient and by time, absent ones, pages and buttons; each kind a list."""
    ask = Asker(APPOINTMENT, screen.image.size)
    places = {"down": "scroll", "up": "scroll", "right": "hscroll", "left": "hscroll"}
    scroll = [
        ask.scroll("scroll-schedule", f"Scroll {way} one page", screen.grid, way, action=action)
        for way, action in places.items()
    ]
    buttons = [
        ask.point("click-schedule-button", f"Click the {name} button", box, local=True, button=name)
        for name, box in screen.buttons.items()
    ]
    by_time = [
        ask.point("find-appointment", _at(found.time, found.column), found.box, match=True)
        for found in screen.appointments
    ]
    return [*_by_patient(ask, screen), scroll, buttons, by_time, _absent(ask, screen, rng)]


def _by_patient(ask: Asker, screen: AppointmentScreen) -> list[list[Task]]:
    """Each way to ask for a patient's block is a kind; the verb decides about the call."""
    ways = (
        ("click-appointment", "Click the appointment of {}", "left_click"),
        ("click-appointment", "Select {}", "left_click"),
        ("hover-appointment", "Hover over {}", "mouse_move"),
        ("open-appointment", "Open {}", "double_click"),
    )
    return [
        [
            ask.point(task_type, words.format(_name(found.patient)), found.box, action, local=True)
            for found in screen.appointments
        ]
        for task_type, words, action in ways
    ]


def _absent(ask: Asker, screen: AppointmentScreen, rng: random.Random) -> list[Task]:
    """People who have no appointment, and free times of columns that have others."""
    present = {found.patient for found in screen.appointments}
    strangers = [person for person in content.everyone() if person not in present]
    prompts = [
        f"Click the appointment of {_name(person)}" for person in rng.sample(strangers, _ABSENT)
    ]
    free = [
        (time, column)
        for column in screen.columns
        for time in _free_times(screen, [a for a in screen.appointments if a.column == column])
    ]
    prompts += [_at(time, column) for time, column in rng.sample(free, _ABSENT)]
    answer = ToolCall.computer_use("answer", text=NO_MATCH)
    return [
        ask.reply("find-appointment", prompt, answer, screen.grid, match=False)
        for prompt in prompts
    ]


def _free_times(screen: AppointmentScreen, column: list[Appointment]) -> list[str]:
    """Times that no block of the column touches: nobody could mean one that has begun before."""
    slot = (screen.grid.y1 - screen.grid.y0) // len(screen.times)
    middles = ((screen.grid.y0 + (i + 0.5) * slot, time) for i, time in enumerate(screen.times))
    return [time for y, time in middles if not any(a.box.y0 <= y <= a.box.y1 for a in column)]


def _at(time: str, column: str) -> str:
    return f"Click the {time} appointment in {column}"


def _name(person: tuple[str, str]) -> str:
    return " ".join(person)
