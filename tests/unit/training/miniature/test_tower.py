"""The tower's lessons: it learns from them, and a stopped run goes on."""

import itertools

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from tests.support.checkpoints import untrained_checkpoint
from training.miniature.fit import FitConfig
from training.miniature.tower import LessonStream, teach_tower
from training.screens.calendar import draw_calendar


def test_lessons_show_the_screens_in_turn(reader):
    shown = []

    def draw(name):
        def drawn(rng):
            shown.append(name)
            return draw_calendar(rng)

        return drawn

    stream = LessonStream(reader, [draw(name) for name in "abc"], seed=1, screens=2)
    lessons = list(itertools.islice(stream, 3))
    assert "".join(shown) == "abcabc"
    assert [len(lesson.grid_thw) for lesson in lessons] == [2, 2, 2]


def taught(state, steps, **config):
    """The tower after so many steps, from random weights or from the state."""
    model = Qwen3VLForConditionalGeneration.from_pretrained(
        untrained_checkpoint(), dtype=torch.float32
    ).model
    chosen = FitConfig(steps=steps, learning_rate=1e-3, warmup=1, **config)
    teach_tower(model, untrained_checkpoint(), state, [draw_calendar], config=chosen, seed=0)
    return model


def test_a_stopped_tower_goes_on_with_head_optimiser_and_step(tmp_path, monkeypatch):
    state = tmp_path / "tower.pt"
    before = taught(tmp_path / "none.pt", 0).visual.state_dict()
    after = taught(state, 1).visual.state_dict()
    assert any(not torch.equal(after[name], before[name]) for name in before)
    held = torch.load(state, weights_only=True)
    assert held["step"] == 1
    again = taught(state, 1).visual.state_dict()
    assert all(torch.equal(again[name], after[name]) for name in after)
    seen = []
    monkeypatch.setattr(
        "training.miniature.tower.steps_with_progress",
        lambda title, first, last: seen.append((title, first, last)) or iter(()),
    )
    further = taught(state, 3).visual.state_dict()
    assert seen == [("tower", 1, 3)]
    assert all(torch.equal(further[name], after[name]) for name in after)
    kept = torch.load(state, weights_only=True)
    assert all(torch.equal(kept["head"][name], held["head"][name]) for name in held["head"])
    steps = [state["optimiser"]["adamw"]["state"][0]["step"] for state in (kept, held)]
    assert steps == [1, 1]


def test_a_run_that_is_killed_loses_no_more_than_it_has_not_saved(tmp_path, monkeypatch):
    state, steps = tmp_path / "tower.pt", []

    def stopping(title, first, last):
        for step in range(first, last):
            if step == 3:
                raise KeyboardInterrupt
            steps.append(step)
            yield step, lambda note: None

    monkeypatch.setattr("training.miniature.tower.steps_with_progress", stopping)
    with pytest.raises(KeyboardInterrupt):
        taught(state, 6, save_every=2)
    assert steps == [0, 1, 2]
    assert torch.load(state, weights_only=True)["step"] == 2
