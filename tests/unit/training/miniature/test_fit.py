"""The loop and what it is fed: all that is to learn does, and several processes draw."""

import itertools

import pytest
import torch
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from executor_service.model.prompt import PromptBuilder
from tests.support.checkpoints import untrained_checkpoint
from training.miniature.fit import Fit, FitConfig
from training.miniature.guide import Guide
from training.miniature.questions import base_questions
from training.miniature.stream import ScreenStream, Source, in_background
from training.miniature.tower import LessonStream
from training.screens.calendar import draw_calendar
from training.screens.claim_window import draw_claim_window


@pytest.fixture
def turns(reader):
    """Rows of claim windows."""
    builder = PromptBuilder(AutoTokenizer.from_pretrained(untrained_checkpoint()))
    source = Source(draw_claim_window, base_questions, 1, 6, (None,))
    return iter(ScreenStream(reader, builder, [source], seed=1))


@pytest.mark.parametrize("tower", [True, False], ids=["whole", "frozen tower"])
def test_a_step_changes_every_weight_that_is_to_learn_and_no_other(tmp_path, turns, tower):
    checkpoint = untrained_checkpoint()
    model = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    model.model.visual.requires_grad_(tower)
    fit = Fit(
        model,
        model.model,
        model.lm_head,
        FitConfig(steps=1, learning_rate=1e-3, warmup=1),
        tmp_path,
        pad_id=0,
        guide=Guide(model.model.language_model, layer=2),
    )
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    fit.run(turns, sources=1, title="test")
    same = {name for name, weight in model.named_parameters() if torch.equal(weight, before[name])}
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    assert same == frozen
    assert bool(frozen) is not tower


def test_a_stopped_fit_goes_on_with_its_weights_and_its_step(tmp_path, turns):
    def fitted(steps):
        model = Qwen3VLForConditionalGeneration.from_pretrained(
            untrained_checkpoint(), dtype=torch.float32
        )
        config = FitConfig(steps=steps, learning_rate=1e-3, warmup=1)
        guide = Guide(model.model.language_model, layer=2)
        return Fit(model, model.model, model.lm_head, config, tmp_path, pad_id=0, guide=guide)

    first = fitted(1)
    first.run(turns, sources=1, title="test")
    second = fitted(2)
    assert second.step == 1
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(itertools.starmap(torch.equal, pairs))


def test_a_screen_is_drawn_by_the_seed_and_the_worker(reader, monkeypatch):
    builder = PromptBuilder(AutoTokenizer.from_pretrained(untrained_checkpoint()))
    asked = []

    def ask(name):
        def questions(screen, rng, count):
            asked.append((name, screen.image.tobytes()[:4096]))
            return base_questions(screen, rng, count)

        return questions

    sources = [Source(draw_claim_window, ask(name), 1, 2, (None,)) for name in "abc"]

    def draw(worker, workers, count):
        monkeypatch.setattr("training.miniature.stream.this_worker", lambda: (worker, workers))
        asked.clear()
        list(itertools.islice(ScreenStream(reader, builder, sources, seed=3), count))
        return list(asked)

    alone = draw(0, 1, 4)
    assert [name for name, _ in alone] == ["a", "b", "c", "a"]
    assert draw(0, 1, 4) == alone
    both = [draw(worker, 2, 2) for worker in range(2)]
    # Turn by turn the two yield the sources in the same order as one does.
    assert [name for pair in zip(*both, strict=True) for name, _ in pair] == ["a", "b", "c", "a"]
    assert both[0] != both[1]


def test_workers_share_what_is_kept_and_take_turns(monkeypatch, reader):
    monkeypatch.setattr("training.miniature.stream.cores", lambda: 3)
    builder = PromptBuilder(AutoTokenizer.from_pretrained(untrained_checkpoint()))
    sources = [
        Source(draw, base_questions, rows, 2, (None,))
        for draw, rows in ((draw_claim_window, 1), (draw_calendar, 2))
    ]
    turns = in_background(ScreenStream(reader, builder, sources, seed=3, kept=4))
    assert [len(next(turns)) for _ in range(6)] == [1, 2, 1, 2, 1, 2]


def test_lessons_of_two_workers_differ(monkeypatch, reader):
    monkeypatch.setattr("training.miniature.stream.cores", lambda: 3)
    lessons = in_background(LessonStream(reader, [draw_calendar], seed=3))
    first, second = next(lessons), next(lessons)
    assert first.pixel_values.shape != second.pixel_values.shape or not torch.equal(
        first.pixel_values, second.pixel_values
    )
