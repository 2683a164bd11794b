"""What stands where on a drawn screen, as words with a place: the tower's lessons.

Knows the facts of a drawn screen; does not know patches or weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from training.screens import account_screen, appointment, chart_screen, desktop, login_window
from training.screens import claim_content as content
from training.screens.account_screen import AccountScreen
from training.screens.appointment import AppointmentScreen
from training.screens.calendar import ARROWS, MONTHS, VIEWS, CalendarScreen
from training.screens.canvas import tool_sign
from training.screens.chart_screen import ChartScreen
from training.screens.claim_window import ClaimScreen
from training.screens.desktop import ICON_PX
from training.screens.geometry import Box
from training.screens.login_window import LoginScreen
from training.screens.office_content import ICONS
from training.screens.tasks import Screen

_ROW_NUMBER_X_PX = 9
# Where the writing of a line begins: a user's name, a note's date.
_LINE_X_PX = 24
CALENDAR_CAPTIONS = (*ARROWS, "today", *(view.lower() for view in VIEWS))
_BUTTONS = (
    "OK", "Cancel", *content.OTHER_BUTTONS, *login_window.BUTTONS, *appointment.CAPTIONS,
    *chart_screen.TOOLS, *chart_screen.PAGER, *desktop.PINNED, *account_screen.CAPTIONS,
)  # fmt: skip
NAMES: tuple[str, ...] = (
    *(f"day {day}" for day in range(1, 32)),
    *CALENDAR_CAPTIONS,
    *(f"month {month}" for month in MONTHS),
    # The users of the log-on dialog are the longest list.
    *(f"row {row}" for row in range(1, login_window.USERS + 1)),
    *(f"tab {caption}" for caption in content.TABS),
    *dict.fromkeys(f"button {caption}" for caption in _BUTTONS),
    *(f"field {label}" for label in content.LIST_LABELS),
    "grid",
    "family grid",
    "password",
    *(f"icon {caption}" for caption in ICONS),
    "splash",
)
"""Everything that a mark may name, in the order of the tower's training head."""


@dataclass(frozen=True)
class Mark:
    """A name at a place; `x` and `y` are shares of the screen's width and height."""

    name: str
    x: float
    y: float


def marks(screen: Screen) -> list[Mark]:
    """Lists what a screen's tasks may ask for, each at its writing."""
    if isinstance(screen, CalendarScreen):
        places = _calendar(screen)
    elif isinstance(screen, ClaimScreen):
        places = _claim_window(screen)
    else:
        tools = isinstance(screen, AccountScreen | AppointmentScreen)
        boxes = targets(screen).items()
        places = {name: _at(name, box, tools=tools) for name, box in boxes} | _rows(screen)
    width, height = screen.image.size
    return [Mark(name, x / width, y / height) for name, (x, y) in places.items()]


def _at(name: str, box: Box, *, tools: bool) -> tuple[int, int]:
    # An icon's tile says more than its caption, which is three pixels high on a scaled desktop, and
    # so does a tool's sign.
    if tools and name.startswith("button "):
        return tool_sign(box)
    return (box.centre[0], box.y0 + ICON_PX // 2) if name.startswith("icon ") else box.centre


def targets(screen: Screen) -> dict[str, Box]:
    """What is known by a caption or a look of its own, by its mark's name.

    Not of the calendar and the claim window, where a mark lies in the middle of what it names.
    """
    if isinstance(screen, CalendarScreen | ClaimScreen):
        return {}
    found = {f"button {caption}": box for caption, box in screen.buttons.items()}
    if isinstance(screen, AppointmentScreen):
        return found | {"grid": screen.grid}
    if isinstance(screen, LoginScreen):
        return found | {"grid": screen.users_box, "password": screen.password}
    if isinstance(screen, ChartScreen):
        return found | {"grid": screen.notes_box}
    if isinstance(screen, AccountScreen):
        return found | {"grid": screen.ledger, "family grid": screen.family}
    found |= {f"icon {caption}": box for caption, box in screen.icons.items()}
    return found | ({"splash": screen.splash} if screen.splash else {})


def lines(screen: Screen) -> dict[str, Box]:
    """Lines that are known by their number, from the top, by their mark's name."""
    if isinstance(screen, ClaimScreen):
        boxes = [row.box for row in screen.rows]
    elif isinstance(screen, AccountScreen):
        boxes = [entry.box for entry in screen.entries]
    elif isinstance(screen, LoginScreen):
        boxes = list(screen.users.values())
    elif isinstance(screen, ChartScreen):
        boxes = [note.heading for note in screen.notes]
    else:
        return {}
    return {f"row {number}": box for number, box in enumerate(boxes, start=1)}


def _rows(screen: Screen) -> dict[str, tuple[int, int]]:
    """Where the writing of each line begins."""
    numbered = isinstance(screen, AccountScreen | ClaimScreen)
    x = _ROW_NUMBER_X_PX if numbered else _LINE_X_PX
    return {name: (box.x0 + x, box.centre[1]) for name, box in lines(screen).items()}


def _calendar(screen: CalendarScreen) -> dict[str, tuple[int, int]]:
    places = {f"day {day}": box.centre for day, box in screen.days.items()}
    places |= {caption: box.centre for caption, box in screen.buttons.items()}
    left, right = screen.buttons["previous_month"], screen.buttons["next_month"]
    heading = Box(left.x1, left.y0, right.x0, left.y1)
    return places | {f"month {screen.month_name}": heading.centre}


def _claim_window(screen: ClaimScreen) -> dict[str, tuple[int, int]]:
    places = _rows(screen)
    places |= {f"tab {caption}": box.centre for caption, box in screen.tabs.items()}
    places |= {f"button {caption}": box.centre for caption, box in screen.buttons.items()}
    places |= {f"field {label}": screen.fields[label].centre for label in content.LIST_LABELS}
    return places | {"grid": screen.grid.centre}
