"""The miniature is trained on exactly these screens and tasks: they stay as they are.

A change here means that the committed weights and samples no longer fit the code.
"""

import hashlib
import json
import random
from pathlib import Path

import PIL
import pytest

from training.data.synthesize import synthesize
from training.miniature.experts import LEFT_OUT, RECIPES
from training.screens.account_screen import draw_account_screen
from training.screens.appointment import draw_appointment
from training.screens.calendar import draw_calendar
from training.screens.chart_screen import draw_chart_screen
from training.screens.claim_window import draw_claim_window
from training.screens.desktop import draw_desktop
from training.screens.login_window import draw_login_window
from training.screens.tasks import tasks_for

SAMPLES = Path(__file__).resolve().parents[4] / "miniature" / "samples"
# Glyphs and JPEG differ by a few grey levels between the builds of Pillow.
same_pillow = pytest.mark.skipif(PIL.__version__ != "13.0.0", reason="pixels of another Pillow")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


@same_pillow
@pytest.mark.parametrize(
    ("draw", "seed", "digest"),
    [
        (draw_calendar, 1, "5f3ba23870cbac6a"),
        (draw_calendar, 12, "e2bf4c9dcaaaf2ab"),
        (draw_claim_window, 1, "e55e7c0dfac35581"),
        (draw_claim_window, 12, "d17e29c92da000a9"),
        (draw_appointment, 12, "fe9c5ad84a2d8985"),
        (draw_login_window, 12, "b46d710fe3a1175b"),
        (draw_desktop, 12, "d24ec003ae412af5"),
        (draw_chart_screen, 12, "a6638abdcce948a6"),
        (draw_account_screen, 12, "e06ebbc88a6627aa"),
    ],
)
def test_a_seed_draws_the_pixels_it_always_drew(draw, seed, digest):
    assert sha256(draw(random.Random(seed)).image.tobytes()) == digest


@pytest.mark.parametrize(
    ("draw", "seed", "first", "digest"),
    [
        (draw_calendar, 1, "Scroll up one page", "e4adcd77064c9038"),
        (draw_calendar, 11, "Open row 3", "c9f22879cd634922"),
        (draw_calendar, 12, "Click the next month button", "193125b099be4741"),
        (draw_claim_window, 1, "Scroll to 03/24/2029", "c6ebe90979dc4c68"),
        (draw_claim_window, 11, "Open row 3", "e9a916cff97c4824"),
        (draw_claim_window, 12, "Click row 3", "bad69f472721e8ec"),
        (draw_appointment, 12, "Open Dan Larch", "9011a39992ee6767"),
        (draw_login_window, 12, "Open row 20", "8973458a63fae9d1"),
        (draw_desktop, 12, "Double-click the Appointments icon", "1638f5b1666dc4c2"),
        (draw_chart_screen, 12, "Scroll up one page", "6f4de29e21d1c2fd"),
        (draw_account_screen, 12, "Open Leo Larch", "29af86d42b9a4276"),
    ],
)
def test_a_seed_asks_what_it_always_asked_in_the_same_order(draw, seed, first, digest):
    tasks = tasks_for(draw(random.Random(seed)), random.Random(seed))
    assert tasks[0].prompt == first
    told = [
        (
            task.adapter,
            task.task_type,
            task.prompt,
            [dict(call.arguments) for call in task.calls],
            task.real_coords,
            task.tolerance,
            dict(task.extras),
        )
        for task in tasks
    ]
    assert sha256(json.dumps(told).encode()) == digest


def test_the_committed_samples_are_still_what_synthesize_writes(tmp_path):
    shares = {"train": 0.4, "held_out": 0.6}
    synthesize(
        tmp_path / "s",
        images_per_kind=6,
        tasks_per_image=5,
        seed=20_261,
        shares=shares,
        experts=tuple(RECIPES),
        left_out=LEFT_OUT,
    )
    for name in shares:
        written, committed = (folder / f"{name}.jsonl" for folder in (tmp_path / "s", SAMPLES))
        assert written.read_bytes() == committed.read_bytes()
    images = [
        sorted(p.name for p in f.iterdir()) for f in (tmp_path / "s/images", SAMPLES / "images")
    ]
    assert images[0] == images[1]
