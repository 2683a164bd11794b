"""The tasks of the five further screens: unambiguous, on target, and hard where it matters."""

import datetime
import random

import pytest

from training.data.calls import ToolCall
from training.data.labels import judge
from training.scoring import matches
from training.screens.account_screen import draw_account_screen
from training.screens.appointment import draw_appointment
from training.screens.calendar import draw_calendar
from training.screens.chart_screen import draw_chart_screen
from training.screens.claim_window import draw_claim_window
from training.screens.desktop import draw_desktop
from training.screens.geometry import to_thousandths
from training.screens.login_window import draw_login_window
from training.screens.tasks import NO_MATCH, tasks_for

DRAW = {
    "appointment": draw_appointment,
    "login-window": draw_login_window,
    "desktop": draw_desktop,
    "chart-screen": draw_chart_screen,
    "account-screen": draw_account_screen,
}
ALL = {"calendar": draw_calendar, "claim-window": draw_claim_window, **DRAW}
every_kind = pytest.mark.parametrize(("name", "draw"), DRAW.items())


def by_prompt(screen, seed=0):
    tasks = tasks_for(screen, random.Random(seed))
    assert len({task.prompt for task in tasks}) == len(tasks)
    return {task.prompt: task for task in tasks}


def call(action, screen=None, box=None, **arguments):
    if box:
        arguments = {
            "coordinate": list(to_thousandths(*box.centre, *screen.image.size)), **arguments
        }  # fmt: skip
    return ToolCall.computer_use(action, **arguments)


def answers(tasks):
    return {prompt: task.calls for prompt, task in tasks.items()}


@every_kind
def test_answers_are_valid_and_point_into_their_targets_only(name, draw):
    for seed in range(3):
        screen = draw(random.Random(seed))
        tasks = tasks_for(screen, random.Random(seed))
        size = screen.image.size
        assert len({task.prompt for task in tasks}) == len(tasks) > 20
        for task in tasks:
            assert task.adapter == name
            for one in task.calls:
                one.check()
            if not task.points:
                assert task.tolerance is None
                continue
            at = list(to_thousandths(*task.real_coords, *size))
            assert task.calls[0].arguments["coordinate"] == at
            hit = {t.real_coords for t in tasks if matches(task.calls, t.calls, task.tolerance)}
            assert hit == {task.real_coords}


@every_kind
def test_the_order_is_seeded_and_the_kinds_take_turns(name, draw):
    screen = draw(random.Random(4))
    first = tasks_for(screen, random.Random(0))
    assert first == tasks_for(screen, random.Random(0))
    assert [t.prompt for t in first] != [t.prompt for t in tasks_for(screen, random.Random(1))]
    if getattr(screen, "splash", None) is None:
        assert len({task.task_type for task in first[:8]}) >= 4


@every_kind
def test_the_label_rules_never_take_a_task_for_another_experts(name, draw):
    for task in tasks_for(draw(random.Random(0)), random.Random(0)):
        row = {
            "id": f"{name}_1",
            "image": f"images/{name}_1.png",
            "metadata": {"task_type": task.task_type},
        }
        assert judge(row).labels == ()


def test_an_appointment_is_found_by_patient_and_by_time_and_missed_in_words():
    for seed in range(4):
        screen = draw_appointment(random.Random(seed))
        tasks = by_prompt(screen, seed)
        got = answers(tasks)
        for found in screen.appointments:
            person = " ".join(found.patient)
            click = (call("left_click", screen, found.box),)
            assert got[f"Click the appointment of {person}"] == click
            assert got[f"Click the {found.time} appointment in {found.column}"] == click
            assert got[f"Select {person}"] == click
            assert got[f"Hover over {person}"] == (call("mouse_move", screen, found.box),)
            assert got[f"Open {person}"] == (call("double_click", screen, found.box),)
        missed = {p: t for p, t in tasks.items() if t.extras.get("match") is False}
        assert len(missed) == 8
        present = {" ".join(found.patient) for found in screen.appointments}
        starts = {(found.time, found.column) for found in screen.appointments}
        for prompt, task in missed.items():
            assert task.calls == (call("answer", text=NO_MATCH),)
            if prompt.startswith("Click the appointment of "):
                assert prompt.removeprefix("Click the appointment of ") not in present
            else:
                time, column = prompt.removeprefix("Click the ").split(" appointment in ")
                assert (time, column) not in starts


def test_a_free_time_is_touched_by_no_block():
    screen = draw_appointment(random.Random(1))
    for prompt, task in by_prompt(screen).items():
        if task.extras.get("match") is False and " appointment in " in prompt:
            time, column = prompt.removeprefix("Click the ").split(" appointment in ")
            y = screen.grid.y0 + screen.times.index(time) * 18 + 9
            blocks = [found.box for found in screen.appointments if found.column == column]
            assert not any(box.y0 <= y < box.y1 for box in blocks)


def test_a_schedule_scrolls_both_ways_by_a_page():
    screen = draw_appointment(random.Random(0))
    got = answers(by_prompt(screen))
    grid = screen.grid
    assert got["Scroll down one page"] == (call("scroll", screen, grid, pixels=300),)
    assert got["Scroll up one page"] == (call("scroll", screen, grid, pixels=-300),)
    assert got["Scroll right one page"] == (call("hscroll", screen, grid, pixels=300),)
    assert got["Scroll left one page"] == (call("hscroll", screen, grid, pixels=-300),)


def test_a_password_takes_a_click_and_the_typing():
    screen = draw_login_window(random.Random(0))
    tasks = [t for t in by_prompt(screen).values() if t.task_type == "enter-password"]
    assert len(tasks) == 3
    for task in tasks:
        word = task.prompt.removeprefix("Enter the password ")
        click = call("left_click", screen, screen.password)
        assert task.calls == (click, call("type", text=word))
        assert not matches(task.calls, (click,), task.tolerance)


def test_users_are_selected_if_they_are_there():
    screen = draw_login_window(random.Random(2))
    tasks = by_prompt(screen)
    got = answers(tasks)
    for number, (name, box) in enumerate(screen.users.items(), start=1):
        assert got[f"Select user {name}"] == (call("left_click", screen, box),)
        assert got[f"Click row {number}"] == (call("left_click", screen, box),)
        assert got[f"Open row {number}"] == (call("double_click", screen, box),)
    absent = [t for t in tasks.values() if t.task_type == "select-absent-user"]
    assert len(absent) == 3
    for task in absent:
        assert task.extras["user"] not in screen.users
        assert task.calls == (call("terminate", status="failure"),)
    assert tasks["Click the OK button"].task_type == "click-ok"
    assert got["Click the OK button"] == (call("left_click", screen, screen.buttons["OK"]),)
    down = call("scroll", screen, screen.users_box, pixels=300)
    assert got["Scroll down one page"] == (down,)


def test_the_same_words_mean_a_double_click_or_to_wait():
    for seed in range(4):
        idle = by_prompt(draw_desktop(random.Random(seed), splash=False))
        screen = draw_desktop(random.Random(seed), splash=True)
        busy = by_prompt(screen)
        assert idle.keys() == busy.keys()
        for task in busy.values():
            assert task.calls == (call("wait", time=3.0),)
            assert task.target == screen.splash
        for name, box in screen.icons.items():
            for prompt in (f"Open {name}", f"Double-click the {name} icon"):
                assert idle[prompt].calls == (call("double_click", screen, box),)
        assert idle["Scroll down one page"].calls == (call("terminate", status="failure"),)
        start = call("left_click", screen, screen.buttons["Start"])
        assert idle["Click the Start button"].calls == (start,)
        for number, names in enumerate(screen.rows, start=1):
            first = call("double_click", screen, screen.icons[names[0]])
            assert idle[f"Open row {number}"].calls == (first,)


def test_a_date_is_scrolled_to_reached_or_missing():
    met = set()
    for seed in range(12):
        screen = draw_chart_screen(random.Random(seed))
        shown = {note.date for note in screen.notes}
        for task in by_prompt(screen, seed).values():
            if task.task_type != "scroll-to-date":
                continue
            day = datetime.date.fromisoformat(task.extras["target_date"])
            assert str(day.year) in task.prompt
            if day in shown:
                expected = call("terminate", status="success")
            elif min(shown) < day < max(shown):
                expected = call("terminate", status="failure")
            else:
                down = (day < min(shown)) == screen.newest_first
                pixels = 300 if down else -300
                expected = call("scroll", screen, screen.notes_box, pixels=pixels)
                met.add((screen.newest_first, day < min(shown), down))
            assert task.calls == (expected,)
    assert len(met) == 4


def test_notes_are_opened_by_row_and_selected_by_day():
    screen = draw_chart_screen(random.Random(1))
    got = answers(by_prompt(screen))
    for number, note in enumerate(screen.notes, start=1):
        assert got[f"Open row {number}"] == (call("double_click", screen, note.heading),)
        day = f"{note.date:%B} {note.date.day}"
        assert got[f"Select {day}"] == (call("left_click", screen, note.heading),)
    next_page = (call("left_click", screen, screen.buttons["Next"]),)
    assert got["Click the Next button"] == next_page


def test_an_account_scrolls_two_grids_and_starts_claims():
    screen = draw_account_screen(random.Random(1))
    got = answers(by_prompt(screen))
    ledger = (call("scroll", screen, screen.ledger, pixels=300),)
    family = (call("scroll", screen, screen.family, pixels=-300),)
    assert got["Scroll down one page"] == got["Scroll down one page within the ledger"] == ledger
    assert got["Scroll up one page within the family grid"] == family
    claim = (call("left_click", screen, screen.buttons["New Claim"]),)
    assert got["Create a new claim"] == got["Click the New Claim button"] == claim
    for entry in screen.entries:
        row = (call("left_click", screen, entry.box),)
        assert got[f"Select row {entry.number}"] == row
        assert got[f"Open row {entry.number}"] == (call("double_click", screen, entry.box),)
    for person, box in screen.members.items():
        assert got[f"Select {' '.join(person)}"] == (call("left_click", screen, box),)


def test_words_are_shared_by_many_experts():
    asked = {
        name: {
            prompt
            for seed in range(5)
            for prompt in by_prompt(draw(random.Random(seed)), seed)
        }
        for name, draw in ALL.items()
    }  # fmt: skip
    for prompt in ("Scroll down one page", "Scroll up one page"):
        assert all(prompt in prompts for prompts in asked.values())
    assert sum("Open row 2" in prompts for prompts in asked.values()) >= 6
    for name, prompts in asked.items():
        others = set().union(*(asked[other] for other in asked if other != name))
        assert len(prompts & others) >= 8, name
