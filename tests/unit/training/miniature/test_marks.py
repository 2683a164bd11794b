"""What the tower is taught about a screen, and where."""

import random
import re

import pytest

from training.data.calls import ToolCall
from training.miniature.base import SOURCES
from training.miniature.experts import LEFT_OUT, RECIPES, ask_tasks
from training.miniature.marks import NAMES, marks
from training.miniature.questions import base_questions
from training.miniature.tower import LessonStream
from training.scoring import parse_calls
from training.screens.account_screen import draw_account_screen
from training.screens.appointment import draw_appointment
from training.screens.calendar import draw_calendar
from training.screens.claim_window import draw_claim_window
from training.screens.desktop import draw_desktop
from training.screens.tasks import tasks_for

DRAWINGS = pytest.mark.parametrize("draw", [recipe.draw for recipe in RECIPES.values()])


@DRAWINGS
def test_every_mark_has_a_name_of_the_head_and_lies_on_the_screen(draw):
    for seed in range(10):
        found = marks(draw(random.Random(seed)))
        assert {mark.name for mark in found} <= set(NAMES)
        assert all(0 <= mark.x < 1 and 0 <= mark.y < 1 for mark in found)
    assert len(set(NAMES)) == len(NAMES)


def test_a_day_is_marked_at_the_middle_of_its_cell():
    screen = draw_calendar(random.Random(3))
    width, height = screen.image.size
    places = {mark.name: (mark.x * width, mark.y * height) for mark in marks(screen)}
    assert places["day 12"] == pytest.approx(screen.days[12].centre)


@pytest.mark.parametrize("draw", [draw_account_screen, draw_appointment])
def test_a_tool_is_marked_at_its_sign(draw):
    screen = draw(random.Random(3))
    width, height = screen.image.size
    places = {mark.name: (mark.x * width, mark.y * height) for mark in marks(screen)}
    colours = set()
    for caption, box in screen.buttons.items():
        x, y = places[f"button {caption}"]
        assert box.x0 < x < box.centre[0]
        assert y == pytest.approx(box.centre[1])
        colours.add(screen.image.getpixel((round(x), round(y))))
    assert len(colours) >= 5


def test_lines_are_asked_for_by_their_number():
    rng = random.Random(3)
    screen = draw_account_screen(rng)
    pairs = base_questions(screen, rng, 800)
    asked = {int(n) for pair in pairs for n in re.findall(r"\brow (\d+)", pair.question)}
    assert asked == {entry.number for entry in screen.entries}


def test_a_caption_is_asked_for_alone_only_where_it_stands_once():
    for seed in range(20):
        screen = draw_desktop(random.Random(seed))
        pairs = base_questions(screen, random.Random(seed), 400)
        bare = {
            name
            for pair in pairs
            for name in (*screen.icons, *screen.buttons)
            if pair.question == f"Where is {name}"
        }
        assert bare
        assert not bare & (set(screen.icons) & set(screen.buttons))


def test_the_base_writes_every_action_that_an_expert_is_taught():
    rng, known, asked = random.Random(4), set(), set()
    for recipe in RECIPES.values():
        for _ in range(20):
            screen = recipe.draw(rng)
            known |= {
                _action(call)
                for pair in base_questions(screen, rng, 60)
                if pair.question.startswith("Write ")
                for call in parse_calls(pair.answer)
            }
            tasks = [t for t in tasks_for(screen, rng) if t.task_type not in LEFT_OUT]
            asked |= {_action(call) for task in tasks for call in task.calls}
    assert asked <= known


def _action(call: ToolCall) -> tuple[str, str | None]:
    return call.arguments["action"], call.arguments.get("status")


def test_a_lesson_points_at_the_token_that_holds_the_mark(reader):
    lesson = next(iter(LessonStream(reader, [draw_calendar, draw_claim_window], seed=5)))
    screen = draw_calendar(random.Random(5))
    pixels = reader.preprocess(screen.image.convert("RGB"))
    columns, rows = pixels.grid_thw[2] // 2, pixels.grid_thw[1] // 2
    mark = next(mark for mark in marks(screen) if mark.name == "day 9")
    at = int((lesson.name == NAMES.index("day 9")).nonzero()[0])
    token = int(lesson.token[at])
    assert (token % columns, token // columns) == (int(mark.x * columns), int(mark.y * rows))
    x = (token % columns + 0.5 + float(lesson.offset[at, 0])) / columns
    assert x == pytest.approx(mark.x)


@DRAWINGS
def test_the_base_never_hears_an_expert_s_instruction(draw):
    for seed in range(5):
        rng = random.Random(seed)
        screen = draw(rng)
        taught = {pair.question for pair in base_questions(screen, rng, 60)}
        assert not taught & {task.prompt for task in tasks_for(screen, rng)}


@DRAWINGS
def test_a_task_is_looked_for_on_the_screen(draw):
    rng = random.Random(4)
    for pair in ask_tasks(draw(rng), rng, 12):
        ((x, y),) = pair.looks
        assert 0 <= x < 1
        assert 0 <= y < 1


def test_the_base_learns_every_expert_s_screen():
    asked = {source.draw for source in SOURCES}
    assert asked == {recipe.draw for recipe in RECIPES.values()}


def test_a_row_is_marked_at_its_number():
    rng = random.Random(6)
    screen = RECIPES["account-screen"].draw(rng)
    width, height = screen.image.size
    row = screen.entries[3]
    place = next(mark for mark in marks(screen) if mark.name == "row 4")
    assert row.box.x0 < place.x * width < row.box.x0 + 36
    assert place.y * height == pytest.approx(row.box.centre[1])


@pytest.mark.parametrize("draw", [draw_account_screen, draw_appointment])
def test_an_expert_looks_where_the_base_has_learnt_to_look(draw):
    rng = random.Random(4)
    screen = draw(rng)
    places = {mark.name: (mark.x, mark.y) for mark in marks(screen)}
    asked = 0
    for pair in ask_tasks(screen, rng, 60):
        if named := re.fullmatch(r"Click the (.+) button", pair.question):
            assert pair.looks == (places[f"button {named[1]}"],)
            asked += 1
    assert asked > 5
