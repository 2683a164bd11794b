"""The drawn screens: what they say about themselves is what is drawn."""

import calendar
import itertools
import random

import numpy as np
import pytest
from PIL import Image

from training.screens import calendar as calendar_screen
from training.screens.calendar import draw_calendar
from training.screens.claim_content import FORMS, OTHER_BUTTONS, PROVIDERS
from training.screens.claim_window import SIZE, draw_claim_window
from training.screens.geometry import Box, to_thousandths
from training.screens.theme import FONTS, THEMES, UNSEEN_THEMES


def contrast(image: Image.Image, box: Box) -> float:
    """How far the brightest pixel of a box is from its darkest, 0-255."""
    grey = np.asarray(image.convert("L").crop((box.x0, box.y0, box.x1, box.y1)), dtype=int)
    return float(grey.max() - grey.min())


def disjoint(boxes: list[Box]) -> bool:
    return all(
        a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0
        for a, b in itertools.combinations(boxes, 2)
    )


def inside(image: Image.Image, boxes: list[Box]) -> bool:
    width, height = image.size
    return all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= width and b.y1 <= height for b in boxes)


@pytest.mark.parametrize(
    ("pixel", "size", "expected"),
    [((112, 80), (225, 208), (498, 385)), ((565, 300), (1155, 853), (489, 352))],
)
def test_coordinates_are_thousandths_of_each_side(pixel, size, expected):
    assert to_thousandths(*pixel, *size) == expected


def test_coordinates_off_the_screen_are_refused():
    with pytest.raises(ValueError, match="off the 225x208 screen"):
        to_thousandths(226, 0, 225, 208)


def test_an_empty_box_is_refused():
    with pytest.raises(ValueError, match="is empty"):
        Box(3, 0, 3, 5)


def test_a_calendar_holds_the_true_month():
    for seed in range(60):
        screen = draw_calendar(random.Random(seed))
        last = calendar.monthrange(screen.year, screen.month)[1]
        assert list(screen.days) == list(range(1, last + 1))
        assert [len(week) for week in screen.weeks] == [7] * 6
        assert [day for week in screen.weeks for day in week if day] == list(screen.days)
        sunday_first = (calendar.weekday(screen.year, screen.month, 1) + 1) % 7
        assert screen.weeks[0].index(1) == sunday_first
        assert screen.today is None or screen.today in screen.days


def test_a_calendars_parts_are_on_it_apart_and_drawn():
    for seed in range(60):
        screen = draw_calendar(random.Random(seed))
        boxes = [*screen.days.values(), *screen.buttons.values()]
        assert inside(screen.image, boxes)
        assert disjoint(boxes)
        assert min(contrast(screen.image, box) for box in boxes) > 90


def test_a_calendar_cell_is_where_its_row_and_column_say():
    screen = draw_calendar(random.Random(3))
    for week in screen.weeks:
        cells = [screen.days[day] for day in week if day]
        assert len({cell.y0 for cell in cells}) <= 1
        assert [cell.x0 for cell in cells] == sorted({cell.x0 for cell in cells})


def test_calendars_come_in_both_sizes_and_as_rgba():
    screens = [draw_calendar(random.Random(seed)) for seed in range(200)]
    small = sum(screen.image.size == (225, 208) for screen in screens)
    assert {screen.image.size for screen in screens} == {(225, 208), (380, 352)}
    assert 120 <= small <= 180
    assert {screen.image.mode for screen in screens} == {"RGBA"}


def test_neighbour_days_leave_the_facts_alone(monkeypatch):
    drawn = []
    original = calendar_screen._draw_neighbours
    monkeypatch.setattr(
        calendar_screen, "_draw_neighbours", lambda *args: (drawn.append(1), original(*args))
    )
    for seed in range(40):
        screen = draw_calendar(random.Random(seed))
        assert len(screen.days) == calendar.monthrange(screen.year, screen.month)[1]
    assert 5 < len(drawn) < 30


def test_a_claim_windows_parts_are_on_it_apart_and_drawn():
    for seed in range(20):
        screen = draw_claim_window(random.Random(seed))
        assert screen.image.size == SIZE
        assert screen.image.mode == "RGB"
        parts = [screen.grid, *screen.buttons.values(), *screen.tabs.values()]
        assert inside(screen.image, parts + list(screen.fields.values()))
        assert disjoint(parts)
        assert [row.number for row in screen.rows] == list(range(1, len(screen.rows) + 1))
        assert 3 <= len(screen.rows) <= 9
        for row in screen.rows:
            number = Box(row.box.x0 + 1, row.box.y0 + 1, row.box.x0 + 33, row.box.y1)
            assert contrast(screen.image, number) > 90
        assert {"OK", "Cancel"} < set(screen.buttons) <= {"OK", "Cancel", *OTHER_BUTTONS}


def test_an_open_list_hides_no_row_and_hangs_under_its_field():
    for seed in range(20):
        screen = draw_claim_window(random.Random(seed), dropdown=True)
        assert screen.dropdown is not None
        assert 5 <= len(screen.dropdown) <= 9
        forms = screen.dropdown_of == "Claim Form"
        assert set(screen.dropdown) <= set(FORMS if forms else PROVIDERS)
        boxes = list(screen.dropdown.values())
        owner = screen.fields[screen.dropdown_of]
        assert owner.x0 == boxes[0].x0
        assert owner.y1 <= boxes[0].y0 <= owner.y1 + 2
        assert disjoint([screen.grid, *boxes])
        assert {(box.x1 - box.x0, box.y1 - box.y0) for box in boxes} == {(150, 16)}
        assert min(contrast(screen.image, box) for box in boxes) > 90


def test_lists_are_open_about_half_of_the_time():
    screens = [draw_claim_window(random.Random(seed)) for seed in range(40)]
    assert 10 <= sum(screen.dropdown is not None for screen in screens) <= 30
    assert draw_claim_window(random.Random(0), dropdown=False).dropdown is None


def test_a_window_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="cannot hold the dialog"):
        draw_claim_window(random.Random(0), size=(736, 544))


@pytest.mark.parametrize("draw", [draw_calendar, draw_claim_window])
def test_a_seed_draws_the_same_screen(draw):
    first, second = draw(random.Random(7)), draw(random.Random(7))
    assert first.image.tobytes() == second.image.tobytes()
    assert first.buttons == second.buttons
    assert first.image.tobytes() != draw(random.Random(8)).image.tobytes()


@pytest.mark.parametrize("draw", [draw_calendar, draw_claim_window])
def test_unseen_themes_are_drawn_only_when_asked_for(draw):
    used = {draw(random.Random(seed)).theme for seed in range(40)}
    assert not used & set(UNSEEN_THEMES)
    assert used <= set(THEMES)
    assert len(used) >= 6
    assert draw(random.Random(0), theme=UNSEEN_THEMES[0]).theme is UNSEEN_THEMES[0]


def test_every_font_ships_with_its_licence():
    families = {path.name.split("Sans")[0].split("-")[0] for path in FONTS.glob("*.ttf")}
    licences = {path.stem.removeprefix("LICENSE-") for path in FONTS.glob("LICENSE-*.txt")}
    assert families == licences == {"DejaVu", "Roboto"}
