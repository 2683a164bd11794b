"""Tasks of the Log On dialog; knows no pixels."""

from __future__ import annotations

import random

from training.data.calls import ToolCall
from training.screens import office_content as content
from training.screens.login_window import LoginScreen
from training.screens.tasks.core import Asker, Task

LOGIN_WINDOW = "login-window"
_ABSENT = 3
_PASSWORDS = 3


def login_tasks(screen: LoginScreen, rng: random.Random) -> list[list[Task]]:
    """Users by name and by row, passwords, buttons and pages; each kind a list."""
    ask = Asker(LOGIN_WINDOW, screen.image.size)
    users = [
        ask.point("select-user", f"Select user {name}", box, local=True, user=name)
        for name, box in screen.users.items()
    ]
    absent = rng.sample([name for name in content.USERS if name not in screen.users], _ABSENT)
    give_up = ToolCall.computer_use("terminate", status="failure")
    strangers = [
        ask.reply("select-absent-user", f"Select user {name}", give_up, screen.users_box, user=name)
        for name in absent
    ]
    rows = [
        ask.point("click-user-row", f"{verb} row {number}", box, action, row=number)
        for number, box in enumerate(screen.users.values(), start=1)
        for verb, action in (("Click", "left_click"), ("Open", "double_click"))
    ]
    buttons = [
        ask.point(f"click-{name.lower()}", f"Click the {name} button", box, local=True, button=name)
        for name, box in screen.buttons.items()
    ]
    scroll = [
        ask.scroll("scroll-users", f"Scroll {way} one page", screen.users_box, way)
        for way in ("down", "up")
    ]
    return [users, strangers, rows, _passwords(ask, screen, rng), buttons, scroll]


def _passwords(ask: Asker, screen: LoginScreen, rng: random.Random) -> list[Task]:
    """The input has no focus, so the answer is two calls: a click into it, then the text."""
    words = rng.sample(content.PASSWORD_WORDS, _PASSWORDS)
    tasks = []
    for password in (f"{word}{rng.randint(10, 99)}" for word in words):
        typed = ToolCall.computer_use("type", text=password)
        prompt = f"Enter the password {password}"
        tasks.append(ask.point("enter-password", prompt, screen.password, then=(typed,)))
    return tasks
