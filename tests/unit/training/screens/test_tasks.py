"""The experts' tasks: unambiguous, on target, and different where the words do not."""

import datetime
import random
from collections import Counter

import pytest

from training.scoring import matches
from training.screens.calendar import ARROWS, draw_calendar
from training.screens.claim_content import FORMS
from training.screens.claim_window import draw_claim_window
from training.screens.geometry import to_thousandths
from training.screens.tasks import tasks_for


def by_prompt(screen):
    tasks = tasks_for(screen, random.Random(0))
    assert len({task.prompt for task in tasks}) == len(tasks)
    return {task.prompt: task for task in tasks}


def one_call(task):
    (call,) = task.calls
    call.check()
    return call.arguments


def test_calendar_conventions():
    screen = draw_calendar(random.Random(2))
    tasks = by_prompt(screen)
    assert {task.adapter for task in tasks.values()} == {"calendar"}
    size = screen.image.size

    def answer(action, box):
        return {"action": action, "coordinate": list(to_thousandths(*box.centre, *size))}

    for day, box in screen.days.items():
        click = tasks[f"Click {screen.month_name} {day} in the calendar"]
        assert one_call(click) == answer("left_click", box)
        assert click.task_type == "click_calendar_day"
        assert click.extras["target_date"] == f"{screen.year}-{screen.month:02}-{day:02}"
        select = tasks[f"Select {screen.month_name} {day}"]
        assert one_call(select) == answer("double_click", box)
    down, up = tasks["Scroll down one page"], tasks["Scroll up one page"]
    assert one_call(down) == answer("left_click", screen.buttons["next_month"])
    assert one_call(up) == answer("left_click", screen.buttons["previous_month"])
    assert down.task_type == "click_calendar_button"
    assert one_call(tasks["Open row 1"]) == answer("left_click", screen.days[1])
    today = tasks["Click the Today button"]
    assert one_call(today) == answer("left_click", screen.buttons["today"])
    assert today.task_type == "click_bottom_buttons"
    for name in ARROWS:
        arrow = tasks[f"Click the {name.replace('_', ' ')} button"]
        assert one_call(arrow) == answer("left_click", screen.buttons[name])
        assert arrow.task_type == "click_top_buttons"


def test_calendar_rows_are_asked_for_only_if_they_hold_a_day():
    for seed in range(40):
        screen = draw_calendar(random.Random(seed))
        rows = [p for p in by_prompt(screen) if p.startswith("Open row")]
        assert len(rows) == sum(any(week) for week in screen.weeks)


def test_claim_window_conventions():
    screen = draw_claim_window(random.Random(2), dropdown=True)
    assert screen.dropdown_of == "Billing Provider"
    tasks = by_prompt(screen)
    assert {task.adapter for task in tasks.values()} == {"claim-window"}
    size = screen.image.size

    def at(box):
        return list(to_thousandths(*box.centre, *size))

    for way, pixels in (("down", 300), ("up", -300)):
        expected = {"action": "scroll", "coordinate": at(screen.grid), "pixels": pixels}
        for where in ("", " within the procedures grid."):
            task = tasks[f"Scroll {way} one page{where}"]
            assert one_call(task) == expected
            assert task.task_type == "scroll-grid"
            assert task.tolerance is None
    for row in screen.rows:
        for verb in ("Open", "Click"):
            expected = {"action": "double_click", "coordinate": at(row.box)}
            assert one_call(tasks[f"{verb} row {row.number}"]) == expected
    for name, box in screen.dropdown.items():
        task = tasks[f"Select {name} from the dropdown list"]
        assert one_call(task) == {"action": "left_click", "coordinate": at(box)}
        assert task.task_type == "provider-dropdown"
        named = tasks[f"Select {name} as the Billing Provider"]
        assert one_call(named) == one_call(task)
        assert named.task_type == "select-provider"
    for way, pixels in (("down", 300), ("up", -300)):
        task = tasks[f"Scroll the window {way} one page"]
        assert one_call(task) == {"action": "scroll", "coordinate": [500, 499], "pixels": pixels}
        assert task.task_type == f"scroll-page-{way}"
    expected = {"action": "double_click", "coordinate": at(screen.buttons["OK"])}
    assert one_call(tasks["Click the OK button"]) == expected


def test_nobody_selects_from_a_closed_list_and_an_open_one_is_not_opened():
    screen = draw_claim_window(random.Random(2), dropdown=False)
    tasks = by_prompt(screen)
    assert not [prompt for prompt in tasks if prompt.startswith("Select")]
    fields = ("Billing Provider", "Treating Provider", "Claim Form")
    for label in fields:
        task = tasks[f"Click the {label} field"]
        at = list(to_thousandths(*screen.fields[label].centre, *screen.image.size))
        assert one_call(task) == {"action": "double_click", "coordinate": at}
        assert task.task_type == f"click-{label.lower().replace(' ', '-')}"
    opened = by_prompt(draw_claim_window(random.Random(2), dropdown=True))
    assert not [label for label in fields if f"Click the {label} field" in opened]


def test_a_form_is_selected_from_the_list_of_forms():
    screens = (draw_claim_window(random.Random(seed), dropdown=True) for seed in range(20))
    screen = next(screen for screen in screens if screen.dropdown_of == "Claim Form")
    tasks = by_prompt(screen)
    assert list(screen.dropdown) == list(FORMS)
    for name, box in screen.dropdown.items():
        task = tasks[f"Select {name} from the dropdown list"]
        at = list(to_thousandths(*box.centre, *screen.image.size))
        assert one_call(task) == {"action": "left_click", "coordinate": at}
        assert task.task_type == "select-claim-form"


def test_the_claims_later_dates_are_below():
    for seed in range(10):
        screen = draw_claim_window(random.Random(seed))
        shown = datetime.datetime.strptime(screen.rows[0].date, "%m/%d/%Y").date()
        dated = [t for t in by_prompt(screen).values() if t.task_type == "scroll-to-date"]
        assert len(dated) == 6
        for task in dated:
            later = datetime.date.fromisoformat(task.extras["target_date"]) > shown
            assert one_call(task)["pixels"] == (300 if later else -300)


def test_shared_words_mean_different_calls():
    calendar = by_prompt(draw_calendar(random.Random(1)))
    claim = by_prompt(draw_claim_window(random.Random(1)))
    shared = calendar.keys() & claim.keys()
    assert shared >= {"Scroll down one page", "Scroll up one page", "Open row 1", "Open row 2"}
    for prompt in shared:
        assert calendar[prompt].calls[0].action != claim[prompt].calls[0].action


@pytest.mark.parametrize("draw", [draw_calendar, draw_claim_window])
def test_answers_point_into_their_targets_and_match_only_themselves(draw):
    screen = draw(random.Random(5))
    tasks = tasks_for(screen, random.Random(0))
    for task in tasks:
        width, height = screen.image.size
        x, y = to_thousandths(*task.real_coords, width, height)
        assert task.calls[0].arguments["coordinate"] == [x, y]
        hit = {
            other.real_coords for other in tasks if matches(task.calls, other.calls, task.tolerance)
        }
        assert hit == {task.real_coords}


@pytest.mark.parametrize("draw", [draw_calendar, draw_claim_window])
def test_kinds_take_turns(draw):
    screen = draw(random.Random(4))
    first = tasks_for(screen, random.Random(0))[:8]
    assert len({task.task_type for task in first}) >= 3
    assert Counter(task.prompt.split()[0] for task in first).most_common(1)[0][1] <= 4
    again = tasks_for(screen, random.Random(0))[:8]
    assert [task.prompt for task in first] == [task.prompt for task in again]
