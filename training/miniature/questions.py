"""What the base model learns before there are experts: to read, to point and to write.

Knows the facts of a drawn screen; does not know the experts' instructions, which the base must
never see (it would then need no expert).
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Sequence
from typing import Any

from training.data.calls import ToolCall, format_calls
from training.packing import QuestionAnswer
from training.screens.calendar import CalendarScreen
from training.screens.claim_window import ClaimScreen
from training.screens.geometry import Box, to_thousandths

MONTHS = [datetime.date(2000, month, 1).strftime("%B") for month in range(1, 13)]
CLICKS = ("left_click", "double_click", "right_click", "mouse_move")
Ask = Callable[[random.Random], QuestionAnswer]


def base_questions(
    screen: CalendarScreen | ClaimScreen, rng: random.Random, count: int
) -> list[QuestionAnswer]:
    """Draws questions: half dense reading, the rest pointing, with some writing.

    Args:
        screen: A drawn screen with its facts.
        rng: Source of randomness.
        count: How many.

    Returns:
        `count` pairs.
    """
    size = screen.image.size
    if isinstance(screen, CalendarScreen):
        reading, pointing = _calendar(screen, size)
    else:
        reading, pointing = _claim_window(screen, size)
    writing: list[Ask] = [_write_click, _write_scroll]
    kinds = rng.choices((reading, pointing, writing), weights=(45, 45, 10), k=count)
    return [rng.choice(kind)(rng) for kind in kinds]


def _calendar(screen: CalendarScreen, size: tuple[int, int]) -> tuple[list[Ask], list[Ask]]:
    def week(rng: random.Random) -> QuestionAnswer:
        number = rng.randrange(len(screen.weeks))
        days = " ".join("-" if day is None else str(day) for day in screen.weeks[number])
        return QuestionAnswer(f"Read week {number + 1}", days)

    def month(rng: random.Random) -> QuestionAnswer:
        return QuestionAnswer("Read the month", f"{MONTHS[screen.month - 1]} {screen.year}")

    def day(rng: random.Random) -> QuestionAnswer:
        number = rng.choice(list(screen.days))
        return _where(str(number), screen.days[number], size)

    def week_start(rng: random.Random) -> QuestionAnswer:
        weeks = [i for i, row in enumerate(screen.weeks) if any(row)]
        number = rng.choice(weeks)
        first = next(day for day in screen.weeks[number] if day is not None)
        return _where(f"the first day of week {number + 1}", screen.days[first], size)

    def button(rng: random.Random) -> QuestionAnswer:
        name = rng.choice(list(screen.buttons))
        return _where(name.replace("_", " "), screen.buttons[name], size)

    return [week, week, week, week, month], [day, day, day, day, week_start, button]


def _claim_window(screen: ClaimScreen, size: tuple[int, int]) -> tuple[list[Ask], list[Ask]]:
    def row(rng: random.Random) -> QuestionAnswer:
        chosen = rng.choice(screen.rows)
        return QuestionAnswer(f"Read row {chosen.number}", f"{chosen.code} {chosen.provider}")

    def names(rng: random.Random) -> QuestionAnswer:
        return QuestionAnswer("Read the list", " ".join(screen.dropdown or ["none"]))

    def where_row(rng: random.Random) -> QuestionAnswer:
        chosen = rng.choice(screen.rows)
        return _where(f"row {chosen.number}", chosen.box, size)

    def where_grid(rng: random.Random) -> QuestionAnswer:
        return _where("the grid", screen.grid, size)

    def where_name(rng: random.Random) -> QuestionAnswer:
        name = rng.choice(list(screen.dropdown or {}))
        return _where(name, (screen.dropdown or {})[name], size)

    def where_button(rng: random.Random) -> QuestionAnswer:
        places = {**screen.buttons, **screen.tabs}
        name = rng.choice(list(places))
        return _where(name, places[name], size)

    pointing: list[Ask] = [where_row, where_grid, where_button]
    reading: list[Ask] = [row, row]
    if screen.dropdown:
        return [*reading, names, names, names], [*pointing, where_name, where_name, where_name]
    return reading, pointing


def _where(name: str, box: Box, size: tuple[int, int]) -> QuestionAnswer:
    x, y = to_thousandths(*box.centre, *size)
    return QuestionAnswer(f"Where is {name}", f"[{x}, {y}]")


def _write_click(rng: random.Random) -> QuestionAnswer:
    action, at = rng.choice(CLICKS), _somewhere(rng)
    return _write(f"Write {action} at {at}", action=action, coordinate=at)


def _write_scroll(rng: random.Random) -> QuestionAnswer:
    pixels, at = rng.choice((-300, 300, -150, 150, 600, -600)), _somewhere(rng)
    return _write(f"Write scroll {pixels} at {at}", action="scroll", coordinate=at, pixels=pixels)


def _write(question: str, **arguments: Any) -> QuestionAnswer:
    return QuestionAnswer(question, format_calls([ToolCall("computer_use", arguments)]))


def _somewhere(rng: random.Random) -> list[int]:
    return [rng.randint(0, 1000), rng.randint(0, 1000)]


def corpus(pairs: Sequence[QuestionAnswer]) -> list[str]:
    """Texts for the tokenizer to learn merges from."""
    return [text for pair in pairs for text in (pair.question, pair.answer)]
