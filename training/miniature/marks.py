"""What stands where on a drawn screen, as words with a place: the tower's lessons.

Knows the facts of a drawn screen; does not know patches or weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from training.screens import claim_content as content
from training.screens.calendar import ARROWS, MONTHS, VIEWS, CalendarScreen
from training.screens.claim_window import GRID_ROWS, ClaimScreen
from training.screens.geometry import Box

_ROW_NUMBER_X_PX = 9
# A surname stands left of its item's middle: there a token would show empty paper.
_SURNAME_X_PX = 45
CALENDAR_CAPTIONS = (*ARROWS, "today", *(view.lower() for view in VIEWS))
NAMES: tuple[str, ...] = (
    *(f"day {day}" for day in range(1, 32)),
    *CALENDAR_CAPTIONS,
    *(f"month {month}" for month in MONTHS),
    *(f"row {row}" for row in range(1, GRID_ROWS[1] + 1)),
    *(f"tab {caption}" for caption in content.TABS),
    *(f"button {caption}" for caption in ("OK", "Cancel", *content.OTHER_BUTTONS)),
    *(f"item {name}" for name in content.PROVIDERS),
    "grid",
)
"""Everything that a mark may name, in the order of the tower's training head."""


@dataclass(frozen=True)
class Mark:
    """A name at a place; `x` and `y` are shares of the screen's width and height."""

    name: str
    x: float
    y: float


def marks(screen: CalendarScreen | ClaimScreen) -> list[Mark]:
    """Lists what a screen's tasks may ask for, each at its writing."""
    places = _calendar(screen) if isinstance(screen, CalendarScreen) else _claim_window(screen)
    width, height = screen.image.size
    return [Mark(name, x / width, y / height) for name, (x, y) in places.items()]


def _calendar(screen: CalendarScreen) -> dict[str, tuple[int, int]]:
    places = {f"day {day}": box.centre for day, box in screen.days.items()}
    places |= {caption: box.centre for caption, box in screen.buttons.items()}
    left, right = screen.buttons["previous_month"], screen.buttons["next_month"]
    heading = Box(left.x1, left.y0, right.x0, left.y1)
    return places | {f"month {screen.month_name}": heading.centre}


def _claim_window(screen: ClaimScreen) -> dict[str, tuple[int, int]]:
    places = {
        f"row {row.number}": (row.box.x0 + _ROW_NUMBER_X_PX, row.box.centre[1])
        for row in screen.rows
    }
    places |= {f"tab {caption}": box.centre for caption, box in screen.tabs.items()}
    places |= {f"button {caption}": box.centre for caption, box in screen.buttons.items()}
    places |= {
        f"item {name}": (box.x0 + _SURNAME_X_PX, box.centre[1])
        for name, box in (screen.dropdown or {}).items()
    }
    return places | {"grid": screen.grid.centre}
