"""Tasks of the Edit Claim dialog; knows no pixels."""

from __future__ import annotations

import random

from training.screens.claim_window import ClaimScreen
from training.screens.geometry import Box
from training.screens.tasks.core import Asker, Task

CLAIM_WINDOW = "claim-window"


def claim_tasks(screen: ClaimScreen, _: random.Random) -> list[list[Task]]:
    """Pages, rows, buttons and the open list; each kind a list."""
    ask = Asker(CLAIM_WINDOW, screen.image.size)

    def pick(name: str, box: Box) -> Task:
        prompt = f"Select {name} from the dropdown list"  # noqa: S608 - no SQL
        return ask.point("provider-dropdown", prompt, box, local=True, provider=name)

    scroll = [
        ask.scroll("scroll-grid", f"Scroll {way} one page{where}", screen.grid, way)
        for way in ("down", "up")
        for where in ("", " within the procedures grid.")
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
    kinds = [scroll, rows, buttons]
    if screen.dropdown:
        kinds.append([pick(name, box) for name, box in screen.dropdown.items()])
    return kinds
