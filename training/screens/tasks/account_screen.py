"""Tasks of the account; knows no pixels."""

from __future__ import annotations

import random

from training.screens import office_content as content
from training.screens.account_screen import AccountScreen
from training.screens.tasks.core import Asker, Task

ACCOUNT_SCREEN = "account-screen"


def account_tasks(screen: AccountScreen, _: random.Random) -> list[list[Task]]:
    """Pages of both grids, rows, dates, people, buttons and new claims; each kind a list."""
    ask = Asker(ACCOUNT_SCREEN, screen.image.size)
    grids = (("", screen.ledger), (" within the ledger", screen.ledger),
             (" within the family grid", screen.family))  # fmt: skip
    scroll = [
        ask.scroll("scroll-account", f"Scroll {way} one page{where}", grid, way)
        for way in ("down", "up")
        for where, grid in grids
    ]
    rows = [
        ask.point("select-row", f"{verb} row {entry.number}", entry.box, action, row=entry.number)
        for entry in screen.entries
        for verb, action in (
            ("Select", "left_click"), ("Click", "left_click"), ("Open", "double_click"),
        )
    ]  # fmt: skip
    days = [content.spoken(entry.date) for entry in screen.entries]
    dates = [
        ask.point("select-entry", f"Select {day}", entry.box, row=entry.number)
        for day, entry in zip(days, screen.entries, strict=True)
        if days.count(day) == 1
    ]
    people = [
        ask.point("select-member", f"{verb} {' '.join(person)}", box, action, local=True)
        for person, box in screen.members.items()
        for verb, action in (
            ("Select", "left_click"), ("Open", "double_click"), ("Hover over", "mouse_move"),
        )
    ]  # fmt: skip
    buttons = [
        ask.point("click-account-button", f"Click the {name} button", box, local=True, button=name)
        for name, box in screen.buttons.items()
    ]
    new_claim = screen.buttons["New Claim"]
    claim = [
        ask.point("new-claim", prompt, new_claim, local=True)
        for prompt in ("Create a new claim", "Start a new claim for this patient")
    ]
    return [scroll, rows, dates, people, buttons, claim]
