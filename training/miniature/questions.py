"""What the base model learns before there are experts: to read, to point and to write.

Knows the facts of a drawn screen; does not know the experts' instructions, which the base must
never see (it would then need no expert).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from training.data.calls import ToolCall, format_calls
from training.miniature.marks import lines, marks, targets
from training.packing import Place, QuestionAnswer
from training.screens import claim_content as content
from training.screens.calendar import CalendarScreen
from training.screens.claim_window import ClaimScreen
from training.screens.geometry import Box, to_thousandths
from training.screens.office_content import PASSWORD_WORDS
from training.screens.tasks import Screen
from training.screens.tasks.desktop import WAIT_S

# An expert's instruction names its target in words of its own; the base must find a name anywhere.
WAYS_TO_ASK = (
    "Where is {}",
    "Where is {}",
    "Find {}",
    "Point at {} on this screen",
    "Look for {} here",
    "The place of {}",
)
CLICKS = ("left_click", "double_click", "right_click", "mouse_move")
Ask = Callable[[random.Random], QuestionAnswer]


def base_questions(screen: Screen, rng: random.Random, count: int) -> list[QuestionAnswer]:
    """Draws questions: most of them pointing, the rest dense reading and some writing.

    Args:
        screen: A drawn screen with its facts.
        rng: Source of randomness.
        count: How many.

    Returns:
        `count` pairs.
    """
    size = screen.image.size
    found = {mark.name: (mark.x, mark.y) for mark in marks(screen)}
    if isinstance(screen, CalendarScreen):
        reading, pointing = _calendar(screen, size, found)
    elif isinstance(screen, ClaimScreen):
        reading, pointing = _claim_window(screen, size, found)
    else:
        reading, pointing = _other(screen, size, found)
    writing: list[Ask] = [_write_click, _write_click, _write_scroll, _write_text, _write_end]
    kinds = rng.choices((reading, pointing, writing), weights=(18, 72, 10), k=count)
    return [rng.choice(kind)(rng) for kind in kinds]


def _calendar(
    screen: CalendarScreen, size: tuple[int, int], found: dict[str, Place]
) -> tuple[list[Ask], list[Ask]]:
    def week(rng: random.Random) -> QuestionAnswer:
        number = rng.randrange(len(screen.weeks))
        week = screen.weeks[number]
        days = " ".join("-" if day is None else str(day) for day in week)
        looks = tuple(found.get(f"day {day}") for day in week)
        return QuestionAnswer(f"Read week {number + 1}", days, looks)

    def month(rng: random.Random) -> QuestionAnswer:
        place = found[f"month {screen.month_name}"]
        return QuestionAnswer("Read the month", screen.month_name, (place,))

    def day(rng: random.Random) -> QuestionAnswer:
        number = rng.choice(list(screen.days))
        name = rng.choice((str(number), str(number), f"{screen.month_name} {number}"))
        return _where(rng, name, screen.days[number], size, found[f"day {number}"])

    def week_start(rng: random.Random) -> QuestionAnswer:
        weeks = [i for i, row in enumerate(screen.weeks) if any(row)]
        number = rng.choice(weeks)
        first = next(day for day in screen.weeks[number] if day is not None)
        name = f"the first day of week {number + 1}"
        return _where(rng, name, screen.days[first], size, found[f"day {first}"])

    def button(rng: random.Random) -> QuestionAnswer:
        name = rng.choice(list(screen.buttons))
        return _where(rng, name.replace("_", " "), screen.buttons[name], size, found[name])

    pointing: list[Ask] = [*[day] * 5, week_start, *[button] * 3]
    return [week, week, week, week, month], pointing


def _claim_window(
    screen: ClaimScreen, size: tuple[int, int], found: dict[str, Place]
) -> tuple[list[Ask], list[Ask]]:
    def buttons(rng: random.Random) -> QuestionAnswer:
        looks = tuple(found[f"button {caption}"] for caption in screen.buttons)
        return QuestionAnswer("Read the buttons", " ".join(screen.buttons), looks)

    def count(rng: random.Random) -> QuestionAnswer:
        last = f"row {len(screen.rows)}"
        return QuestionAnswer("Count the rows", str(len(screen.rows)), (found[last],))

    def where_row(rng: random.Random) -> QuestionAnswer:
        chosen = rng.choice(screen.rows)
        name = f"row {chosen.number}"
        return _where(rng, name, chosen.box, size, found[name])

    def where_grid(rng: random.Random) -> QuestionAnswer:
        return _where(rng, "the grid", screen.grid, size, found["grid"])

    def where_button(rng: random.Random) -> QuestionAnswer:
        name = rng.choice(list(screen.buttons))
        return _where(rng, name, screen.buttons[name], size, found[f"button {name}"])

    def where_tab(rng: random.Random) -> QuestionAnswer:
        name = rng.choice(list(screen.tabs))
        return _where(rng, name, screen.tabs[name], size, found[f"tab {name}"])

    def where_field(rng: random.Random) -> QuestionAnswer:
        label = rng.choice(content.LIST_LABELS)
        name = f"field {label}"
        return _where(rng, f"the {label} field", screen.fields[label], size, found[name])

    pointing: list[Ask] = [where_row, where_grid, *[where_button] * 4, where_tab, where_field]
    return [buttons, count], pointing


def _other(
    screen: Any, size: tuple[int, int], found: dict[str, Place]
) -> tuple[list[Ask], list[Ask]]:
    boxes, rows = targets(screen), lines(screen)
    captions = [mark.partition(" ")[2] for mark in boxes]

    def buttons(rng: random.Random) -> QuestionAnswer:
        shown = sorted(screen.buttons, key=lambda caption: screen.buttons[caption].x0)
        looks = tuple(found[f"button {caption}"] for caption in shown for _ in caption.split())
        return QuestionAnswer("Read the buttons", " ".join(shown), looks)

    def where(rng: random.Random) -> QuestionAnswer:
        mark = rng.choice(list(boxes))
        kind, _, caption = mark.partition(" ")
        if kind not in ("button", "icon"):
            name = f"the {mark}"
        elif captions.count(caption) == 1 and rng.random() < 0.5:
            name = caption
        else:
            # The same caption may stand on a button and below an icon.
            name = f"the {caption} {kind}"
        return _where(rng, name, boxes[mark], size, found[mark])

    def where_row(rng: random.Random) -> QuestionAnswer:
        name = rng.choice(list(rows))
        return _where(rng, name, rows[name], size, found[name])

    return [buttons], [where, where, where_row] if rows else [where]


def _where(
    rng: random.Random, name: str, box: Box, size: tuple[int, int], place: Place
) -> QuestionAnswer:
    x, y = to_thousandths(*box.centre, *size)
    return QuestionAnswer(rng.choice(WAYS_TO_ASK).format(name), f"[{x}, {y}]", (place,))


def _write_click(rng: random.Random) -> QuestionAnswer:
    action, at = rng.choice(CLICKS), _somewhere(rng)
    return _write(f"Write {action} at {at}", action=action, coordinate=at)


def _write_scroll(rng: random.Random) -> QuestionAnswer:
    pixels, at = rng.choice((-300, 300, -150, 150, 600, -600)), _somewhere(rng)
    action = rng.choice(("scroll", "scroll", "hscroll"))
    question = f"Write {action} {pixels} at {at}"
    return _write(question, action=action, coordinate=at, pixels=pixels)


def _write_text(rng: random.Random) -> QuestionAnswer:
    text = f"{rng.choice(PASSWORD_WORDS)}{rng.randint(10, 99)}"
    return _write(f"Write the text {text}", action="type", text=text)


def _write_end(rng: random.Random) -> QuestionAnswer:
    status = rng.choice(("success", "failure", None))
    if status is None:
        return _write("Write wait", action="wait", time=WAIT_S)
    return _write(f"Write terminate {status}", action="terminate", status=status)


def _write(question: str, **arguments: Any) -> QuestionAnswer:
    return QuestionAnswer(question, format_calls([ToolCall("computer_use", arguments)]))


def _somewhere(rng: random.Random) -> list[int]:
    return [rng.randint(0, 1000), rng.randint(0, 1000)]


def corpus(pairs: Sequence[QuestionAnswer]) -> list[str]:
    """Texts for the tokenizer to learn merges from."""
    return [text for pair in pairs for text in (pair.question, pair.answer)]
