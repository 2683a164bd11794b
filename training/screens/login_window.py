"""Draws the Log On dialog, 502x369 px: a list of 22 users and a password; knows no tasks."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image

from training.screens import office_content as content
from training.screens.canvas import BAR_PX, Canvas
from training.screens.geometry import Box
from training.screens.theme import Theme, add_jpeg_noise, pick_theme

SIZE = (502, 369)
USERS = 22
ROW_PX = 14
TITLE_PX = 24
BUTTONS = ("OK", "Exit")
_HINTS = ("Please log on.", "Choose a user.", "Welcome back.", "Enter your password.")


@dataclass(frozen=True)
class LoginScreen:
    """A drawn dialog and where everything in it is.

    Args:
        image: RGB.
        users: User name to row, from the top.
        selected: The user with the highlighted row, if any.
        users_box: The list with its scroll bar.
        password: The password's input.
        buttons: `OK` and `Exit`.
        theme: What it was drawn with.
    """

    image: Image.Image
    users: dict[str, Box]
    selected: str | None
    users_box: Box
    password: Box
    buttons: dict[str, Box]
    theme: Theme


def draw_login_window(rng: random.Random, *, theme: Theme | None = None) -> LoginScreen:
    """Draws one dialog.

    Args:
        rng: Decides everything that is not given.
        theme: One of `THEMES` if None.

    Returns:
        The picture and the boxes of its parts.
    """
    theme = theme or pick_theme(rng)
    canvas = Canvas.blank(rng, theme, SIZE)
    canvas.title("Log On", TITLE_PX)
    left = 10 + canvas.step(16)
    users_box, users, selected = _draw_users(canvas, left)
    right = users_box.x1 + 16 + canvas.step(12)
    top = 92
    canvas.text((right, top), "Password", 13)
    password = Box(right, top + 12, SIZE[0] - 16, top + 34)
    canvas.input(password, "*" * rng.choice((0, 0, 6, 8)))
    canvas.text((right, 42), rng.choice(_HINTS), 12)
    buttons = _draw_buttons(canvas, right)
    image = add_jpeg_noise(canvas.image, rng, share=0.4)
    return LoginScreen(image, users, selected, users_box, password, buttons, theme)


def _draw_users(canvas: Canvas, left: int) -> tuple[Box, dict[str, Box], str | None]:
    rng, colours, users = canvas.rng, canvas.theme.palette, {}
    canvas.text((left, TITLE_PX + 11), "User", 13)
    top = TITLE_PX + 22
    frame = Box(left, top, left + 210 + canvas.step(24), top + USERS * ROW_PX + 2)
    canvas.panel(frame)
    names = rng.sample(content.USERS, USERS)
    if rng.random() < 0.7:
        names.sort(key=str.lower)
    selected = rng.choice(names) if rng.random() < 0.5 else None
    for index, name in enumerate(names):
        y = top + 1 + index * ROW_PX
        box = users[name] = Box(frame.x0 + 1, y, frame.x1 - BAR_PX, y + ROW_PX)
        if name == selected:
            canvas.draw.rectangle(box.edges, fill=colours.accent)
        ink = colours.on_accent if name == selected else colours.text
        canvas.text((box.x0 + 5, box.centre[1]), name, 12, ink=ink)
    canvas.scroll_bar(Box(frame.x1 - BAR_PX, frame.y0, frame.x1, frame.y1))
    return frame, users, selected


def _draw_buttons(canvas: Canvas, left: int) -> dict[str, Box]:
    """OK and Exit, one above or beside the other, in either order."""
    rng, buttons = canvas.rng, {}
    captions = rng.sample(BUTTONS, 2)
    beside = rng.random() < 0.5
    top = 200 + canvas.step(80)
    for index, caption in enumerate(captions):
        x, y = (left + index * 88, top) if beside else (left + 40, top + index * 36)
        box = buttons[caption] = Box(x, y, x + 80, y + 26)
        canvas.button(box, caption)
    return buttons
