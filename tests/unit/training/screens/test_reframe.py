"""Screens at other sizes: what is asked and answered moves along with the pixels."""

import random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from training.screens.account_screen import draw_account_screen
from training.screens.appointment import draw_appointment
from training.screens.calendar import draw_calendar
from training.screens.chart_screen import draw_chart_screen
from training.screens.claim_window import draw_claim_window
from training.screens.desktop import draw_desktop
from training.screens.geometry import Box, to_thousandths
from training.screens.login_window import draw_login_window
from training.screens.reframe import FRESH_SIZES, SIZES, UNSEEN_SIZES, Frame, reframe
from training.screens.tasks import tasks_for
from training.screens.tasks.core import Asker

TARGET = Box(300, 200, 360, 240)


def marked(local):
    """A grey screen with a red target, and one task that points at it."""
    image = Image.new("RGB", (1000, 600), "#808080")
    ImageDraw.Draw(image).rectangle(TARGET.edges, fill="#ff0000")
    return image, [Asker("x", image.size).point("t", "Click it", TARGET, local=local)]


@pytest.mark.parametrize("size", [*SIZES, *UNSEEN_SIZES, *FRESH_SIZES])
def test_answers_stay_on_what_they_pointed_at(size):
    for seed in range(4):
        image, tasks = marked(local=True)
        picture, (task,) = reframe(image, tasks, size, random.Random(seed))
        assert picture.size == size
        at = task.calls[0].arguments["coordinate"]
        assert at == list(to_thousandths(*task.real_coords, *size))
        x, y = (round(part * side / 1000) for part, side in zip(at, size, strict=True))
        red, green, blue = picture.getpixel((x, y))
        assert red > 200
        assert max(green, blue) < 60
        pixels = np.asarray(picture, dtype=int)
        rows, columns = np.nonzero((pixels[..., 0] > 180) & (pixels[..., 1] < 90))
        edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        box = task.target
        assert np.abs(np.subtract(edges, (box.x0, box.y0, box.x1, box.y1))).max() <= 2
        half = (
            (box.x1 - box.x0) * 1000 // (2 * size[0]),
            (box.y1 - box.y0) * 1000 // (2 * size[1]),
        )
        assert task.tolerance == half


def test_what_needs_the_whole_screen_is_not_asked_of_a_cut_out():
    image, tasks = marked(local=False)
    assert reframe(image, tasks, (225, 208), random.Random(0)) is None
    assert reframe(image, tasks, (1155, 853), random.Random(0)) is not None


def test_a_smaller_whole_screen_keeps_every_task_and_its_order():
    screen = draw_login_window(random.Random(0))
    tasks = tasks_for(screen, random.Random(0))
    for size in ((380, 352), (696, 651), (1914, 1032)):
        _, shown = reframe(screen.image, tasks, size, random.Random(1))
        assert [task.prompt for task in shown] == [task.prompt for task in tasks]
        assert [t.calls for t in shown if not t.points] == [t.calls for t in tasks if not t.points]
        two = next(task for task in shown if task.task_type == "enter-password")
        assert [call.action for call in two.calls] == ["left_click", "type"]


def test_a_cut_out_keeps_what_it_shows_whole():
    screen = draw_claim_window(random.Random(3), dropdown=True)
    tasks = tasks_for(screen, random.Random(0))
    for seed in range(6):
        picture, shown = reframe(screen.image, tasks, (380, 352), random.Random(seed))
        assert picture.size == (380, 352)
        assert 1 <= len(shown) < len(tasks)
        assert all(task.local for task in shown)
        for task in shown:
            assert 0 <= task.target.x0 < task.target.x1 <= 380
            assert 0 <= task.target.y0 < task.target.y1 <= 352


def test_a_cut_out_of_a_loading_desktop_shows_the_splash():
    screen = draw_desktop(random.Random(0), splash=True)
    tasks = tasks_for(screen, random.Random(0))
    _, shown = reframe(screen.image, tasks, (1280, 800), random.Random(0))
    assert {task.calls[0].action for task in shown} == {"wait"}
    assert shown[0].target.x1 <= 1280
    assert reframe(screen.image, tasks, (225, 208), random.Random(0)) is None


def plain_desktop(rng):
    return draw_desktop(rng, splash=False)


@pytest.mark.parametrize(
    "draw",
    [
        draw_calendar, draw_claim_window, draw_appointment, draw_login_window, plain_desktop,
        draw_chart_screen, draw_account_screen,
    ],
)  # fmt: skip
def test_a_size_tells_nothing_because_each_screen_comes_in_all_of_them(draw):
    screen = draw(random.Random(0))
    tasks = tasks_for(screen, random.Random(0))
    for size in SIZES:
        picture, shown = reframe(screen.image, tasks, size, random.Random(0))
        assert picture.size == size
        assert shown


def test_the_mode_and_the_seed_decide_the_picture():
    screen = draw_calendar(random.Random(0))
    tasks = tasks_for(screen, random.Random(0))
    first, again, other = (
        reframe(screen.image, tasks, (696, 651), random.Random(seed))[0] for seed in (1, 1, 2)
    )
    assert first.mode == "RGBA"
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_a_box_that_is_cut_is_nowhere():
    frame = Frame((100, 100), 2.0, -20, 0)
    assert frame.box(Box(10, 0, 60, 50)) == Box(0, 0, 100, 100)
    assert frame.box(Box(9, 0, 60, 50)) is None
    assert frame.box(Box(10, 0, 61, 50)) is None
    assert frame.box(Box(10, 0, 60, 51)) is None
