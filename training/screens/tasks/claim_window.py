"""Tasks of the Edit Claim dialog; knows no pixels."""

from __future__ import annotations

import datetime
import random
from collections.abc import Mapping

from training.screens import claim_content as content
from training.screens import office_content
from training.screens.claim_window import ClaimScreen
from training.screens.geometry import Box
from training.screens.tasks.core import Asker, Task

CLAIM_WINDOW = "claim-window"
_BEYOND = 3
_FARTHEST_DAYS = 900


def claim_tasks(screen: ClaimScreen, rng: random.Random) -> list[list[Task]]:
    """Pages, dates, rows, buttons, and the fields with a list or the open list; each a list."""
    ask = Asker(CLAIM_WINDOW, screen.image.size)
    scroll = [
        ask.scroll("scroll-grid", f"Scroll {way} one page{where}", screen.grid, way)
        for way in ("down", "up")
        for where in ("", " within the procedures grid.")
    ]
    window = Box(0, 0, *screen.image.size)
    page = [
        ask.scroll(f"scroll-page-{way}", f"Scroll the window {way} one page", window, way)
        for way in ("down", "up")
    ]
    rows = [
        ask.point("open-row", f"{verb} row {row.number}", row.box, "double_click", row=row.number)
        for row in screen.rows
        for verb in ("Open", "Click")
    ]
    buttons = [
        ask.point(
            "click-claim-button", f"Click the {name} button", box, "double_click",
            local=True, button=name,
        )
        for name, box in screen.buttons.items()
    ]  # fmt: skip
    lists = [_fields(ask, screen)]
    if screen.dropdown and screen.dropdown_of:
        lists = _items(ask, screen.dropdown, screen.dropdown_of)
    return [scroll, page, _dates(ask, screen, rng), rows, buttons, *lists]


def _fields(ask: Asker, screen: ClaimScreen) -> list[Task]:
    return [
        ask.point(
            f"click-{label.lower().replace(' ', '-')}", f"Click the {label} field",
            screen.fields[label], "double_click", field_name=label,
        )
        for label in content.LIST_LABELS
    ]  # fmt: skip


def _items(ask: Asker, items: Mapping[str, Box], label: str) -> list[list[Task]]:
    """What an open list holds, asked for by the list and, a provider, by the list's field."""
    provider = label in content.PROVIDER_LABELS
    task_type = "provider-dropdown" if provider else "select-claim-form"
    by_list = [
        ask.point(
            task_type, f"Select {name} from the dropdown list",  # noqa: S608 - no SQL
            box, local=True, field_name=label, item=name,
        )
        for name, box in items.items()
    ]  # fmt: skip
    if not provider:
        return [by_list]
    by_field = [
        ask.point(
            "select-provider", f"Select {name} as the {label}", box, field_name=label, item=name
        )
        for name, box in items.items()
    ]
    return [by_list, by_field]


def _dates(ask: Asker, screen: ClaimScreen, rng: random.Random) -> list[Task]:
    """Dates beyond the grid's one: it goes on downwards with later ones."""
    shown = datetime.datetime.strptime(screen.rows[0].date, "%m/%d/%Y").date()
    return [
        ask.scroll(
            "scroll-to-date", f"Scroll to {office_content.numeric(day)}", screen.grid, way,
            target_date=day.isoformat(),
        )
        for sign, way in ((1, "down"), (-1, "up"))
        for distance in rng.sample(range(1, _FARTHEST_DAYS), _BEYOND)
        for day in (shown + sign * datetime.timedelta(days=distance),)
    ]  # fmt: skip
