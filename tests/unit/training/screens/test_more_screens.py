"""The five further screens: what they say about themselves is what is drawn."""

import itertools
import random

import numpy as np
import pytest

from training.screens.account_screen import draw_account_screen
from training.screens.appointment import draw_appointment
from training.screens.canvas import Canvas
from training.screens.chart_screen import draw_chart_screen
from training.screens.desktop import CELL_W_PX, draw_desktop
from training.screens.geometry import Box
from training.screens.login_window import draw_login_window
from training.screens.office_content import ICONS, STATUSES, numeric, patients
from training.screens.theme import FRESH_THEMES, THEMES, UNSEEN_THEMES

DRAW = {
    (1640, 930): draw_appointment,
    (502, 369): draw_login_window,
    (1914, 1032): draw_desktop,
    (696, 651): draw_chart_screen,
    (1280, 800): draw_account_screen,
}
each_screen = pytest.mark.parametrize("draw", DRAW.values())


def contrast(image, box):
    grey = np.asarray(image.convert("L").crop((box.x0, box.y0, box.x1, box.y1)), dtype=int)
    return int(grey.max() - grey.min())


def overlap(a, b):
    return a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1


def named(screen):
    """Boxes with writing in them, which must lie apart."""
    boxes = list(screen.buttons.values())
    for part in ("icons", "users", "members"):
        boxes += getattr(screen, part, {}).values()
    for part, box in (("appointments", "box"), ("notes", "heading"), ("entries", "box")):
        boxes += [getattr(item, box) for item in getattr(screen, part, ())]
    return boxes


def grids(screen):
    parts = ("grid", "users_box", "notes_box", "ledger", "family", "password", "splash")
    return [box for part in parts if (box := getattr(screen, part, None))]


@pytest.mark.parametrize(("size", "draw"), DRAW.items())
def test_everything_is_on_the_screen_apart_and_drawn(size, draw):
    for seed in range(3):
        screen = draw(random.Random(seed))
        assert (screen.image.size, screen.image.mode) == (size, "RGB")
        boxes = named(screen)
        assert not [pair for pair in itertools.combinations(boxes, 2) if overlap(*pair)]
        assert not [pair for pair in itertools.combinations(grids(screen), 2) if overlap(*pair)]
        for box in (*boxes, *grids(screen)):
            assert min(box.x0, box.y0) >= 0
            assert box.x1 <= size[0]
            assert box.y1 <= size[1]
        assert min(contrast(screen.image, box) for box in boxes) > 90


@each_screen
def test_a_seed_draws_the_same_screen_and_another_does_not(draw):
    first, second = draw(random.Random(7)), draw(random.Random(7))
    assert first.image.tobytes() == second.image.tobytes()
    assert named(first) == named(second)
    assert first.image.tobytes() != draw(random.Random(8)).image.tobytes()


@each_screen
def test_unseen_themes_are_drawn_only_when_asked_for(draw):
    used = {draw(random.Random(seed)).theme for seed in range(18)}
    assert used <= set(THEMES)
    assert len(used) >= 6
    assert draw(random.Random(0), theme=UNSEEN_THEMES[0]).theme is UNSEEN_THEMES[0]


def test_a_schedule_has_eighteen_columns_and_nobody_twice():
    for seed in range(3):
        screen = draw_appointment(random.Random(seed))
        assert len(screen.columns) == 18
        assert screen.times[0].endswith(":00")
        people = [found.patient for found in screen.appointments]
        assert len(set(people)) == len(people) >= 30
        for found in screen.appointments:
            assert found.time in screen.times
            assert screen.columns[found.column].x0 <= found.box.x0 < found.box.x1
            pixel = np.array(screen.image.getpixel(found.circle.centre), dtype=int)
            far = {
                status: np.abs(pixel - list(bytes.fromhex(colour[1:]))).sum()
                for status, colour in STATUSES.items()
            }
            assert min(far, key=far.get) == found.status


def test_a_block_is_beside_its_time():
    screen = draw_appointment(random.Random(3))
    for found in screen.appointments:
        line = screen.times.index(found.time)
        assert found.box.y0 == screen.grid.y0 + line * 18 + 1


def test_a_log_on_lists_22_users_one_of_them_chosen_or_none():
    chosen = [draw_login_window(random.Random(seed)) for seed in range(30)]
    assert {len(screen.users) for screen in chosen} == {22}
    assert {screen.selected is None for screen in chosen} == {True, False}
    for screen in chosen:
        assert set(screen.buttons) == {"OK", "Exit"}
        tops = [box.y0 for box in screen.users.values()]
        assert tops == sorted(tops)


def test_the_splash_alone_tells_two_desktops_apart():
    for seed in range(5):
        idle = draw_desktop(random.Random(seed), theme=THEMES[0], splash=False)
        busy = draw_desktop(random.Random(seed), theme=THEMES[0], splash=True)
        assert idle.splash is None
        assert busy.splash is not None
        assert (idle.icons, idle.rows, idle.buttons) == (busy.icons, busy.rows, busy.buttons)
        assert not any(overlap(busy.splash, box) for box in busy.icons.values())
        splash = busy.splash
        both = [np.asarray(screen.image.convert("L"), dtype=int) for screen in (idle, busy)]
        changed = np.abs(both[0] - both[1]) > 40
        assert changed[splash.y0 : splash.y1, splash.x0 : splash.x1].mean() > 0.2
        changed[splash.y0 : splash.y1, splash.x0 : splash.x1] = False
        assert changed.sum() < 200  # JPEG's ringing at the edge


def test_a_desktop_is_loading_a_third_of_the_time_and_its_rows_hold_every_icon():
    screens = [draw_desktop(random.Random(seed)) for seed in range(40)]
    assert 6 <= sum(screen.splash is not None for screen in screens) <= 24
    for screen in screens:
        assert [name for names in screen.rows for name in names] == list(screen.icons)
        for names in screen.rows:
            assert len({screen.icons[name].y0 for name in names}) == 1


@pytest.mark.parametrize(
    "theme", [*THEMES, *UNSEEN_THEMES, *FRESH_THEMES], ids=lambda theme: theme.name
)
def test_no_caption_of_an_icon_is_cut(theme):
    assert max(theme.font(13).getlength(name) for name in ICONS) <= CELL_W_PX - 4


def test_notes_have_dates_of_their_own_in_one_direction():
    both = set()
    for seed in range(20):
        screen = draw_chart_screen(random.Random(seed))
        dates = [note.date for note in screen.notes]
        assert len(dates) >= 4
        assert dates == sorted(set(dates), reverse=screen.newest_first)
        both.add(screen.newest_first)
        assert numeric(dates[0]) == f"{dates[0].month:02}/{dates[0].day:02}/{dates[0].year}"
    assert both == {True, False}


def test_an_account_numbers_its_lines_and_can_always_make_a_claim():
    for seed in range(10):
        screen = draw_account_screen(random.Random(seed))
        assert [entry.number for entry in screen.entries] == list(range(1, len(screen.entries) + 1))
        assert "New Claim" in screen.buttons
        assert 2 <= len(screen.members) <= 6
        assert len({surname for _, surname in screen.members}) == 1


def test_people_are_drawn_without_repetition():
    assert len(set(patients(random.Random(0), 100))) == 100


def test_a_text_that_does_not_fit_loses_its_end():
    canvas = Canvas.blank(random.Random(0), THEMES[0], (100, 20))
    canvas.text((0, 10), "W" * 30, 12, room_px=40)
    assert contrast(canvas.image, Box(0, 0, 40, 20)) > 90
    assert contrast(canvas.image, Box(42, 0, 100, 20)) == 0
