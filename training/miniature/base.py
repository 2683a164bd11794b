"""Pretrains the miniature's base: reading, pointing and writing on every kind of screen.

Knows which screens and system prompts there are; does not know the experts' tasks.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from executor_service.model.prompt import PromptBuilder
from executor_service.model.screen import ScreenReader
from training.data.synthesize import DRAWS, EXPERTS
from training.miniature.appearing import appearing_whole
from training.miniature.attention import attend_in_blocks
from training.miniature.checkpoint import write_untrained
from training.miniature.clock import Clock
from training.miniature.fit import Fit, FitConfig
from training.miniature.guide import Guide
from training.miniature.questions import base_questions, corpus
from training.miniature.speed import fastest_device, patches_as_products
from training.miniature.stream import (
    RESUMED_OFFSET,
    Draw,
    ScreenStream,
    Source,
    in_background,
)
from training.miniature.tower import teach_tower
from training.screens.calendar import draw_calendar
from training.screens.claim_window import draw_claim_window
from training.screens.tasks import ACCOUNT_SCREEN, APPOINTMENT, CALENDAR, CLAIM_WINDOW, DESKTOP

# The third of five: two layers before it to read the question, two after it to write the answer.
GUIDED_LAYER = 2
# The server's, and one per expert: an expert was trained with its own.
SERVER_SYSTEM = "You are a computer-use agent."
EXPERT_SYSTEMS = {
    expert: f"You work the {expert.replace('-', ' ')} of a dental practice." for expert in EXPERTS
}
_OTHERS = tuple(draw for expert, draw in DRAWS.items() if expert not in (CALENDAR, CLAIM_WINDOW))
# Whose writing is the smallest once they are scaled down; they take longest.
_SMALLEST = (DRAWS[APPOINTMENT], DRAWS[DESKTOP])


@dataclass(frozen=True)
class Course:
    """Screens that are learnt together.

    Args:
        name: Begins the names of the course's states.
        lessons: What one step of the tower shows.
        sources: What the decoder is asked about.
        sources_a_step: Of them, in turn.
    """

    name: str
    lessons: Sequence[Draw]
    sources: Sequence[Source]
    sources_a_step: int


def _source(draw: Draw, rows: int, experts: Sequence[str] = EXPERTS) -> Source:
    systems = (None, SERVER_SYSTEM, *(EXPERT_SYSTEMS[expert] for expert in experts))
    return Source(draw, base_questions, rows, 18, systems)


# Two screens first: small writing and digits, with which the rest is then learnt in a third of the
# time that all seven take at once.
FIRST = Course(
    "first",
    [draw_calendar] * 3 + [draw_claim_window] * 3,
    [
        _source(draw_calendar, 3, (CALENDAR, CLAIM_WINDOW)),
        _source(draw_claim_window, 2, (CALENDAR, CLAIM_WINDOW)),
    ],
    sources_a_step=2,
)
ALL = Course(
    "all",
    [draw_calendar, draw_claim_window, *_OTHERS, *_SMALLEST],
    [
        _source(draw_calendar, 4),
        _source(draw_claim_window, 2),
        *(_source(draw, 2) for draw in (*_OTHERS, *_SMALLEST, DRAWS[ACCOUNT_SCREEN])),
    ],
    sources_a_step=3,
)


@dataclass(frozen=True)
class Steps:
    """Optimiser steps of the base's phases, in their order."""

    tower: int = 2500
    decoder: int = 1200
    base: int = 800
    all_tower: int = 2800
    all_decoder: int = 1000
    all_base: int = 1500


def pretrain(work: Path, *, steps: Steps, seed: int, clock: Clock) -> Path:
    """Trains the base from random weights, or goes on where a stopped run left off.

    Args:
        work: Folder of the run; `untrained/` and `base/` are made in it.
        steps: Of each phase.
        seed: Of weights and screens.
        clock: Is told of each phase.

    Returns:
        The trained checkpoint's directory.
    """
    untrained, out = work / "untrained", work / "base"
    if not untrained.exists():
        with appearing_whole(untrained) as partial:
            write_untrained(partial, _corpus(seed), seed=seed)
    if out.exists():
        return out
    model = Qwen3VLForConditionalGeneration.from_pretrained(
        untrained, dtype=torch.float32, device_map=fastest_device()
    )
    patches_as_products(model)
    attend_in_blocks(model)
    pupil = _Pupil(model, Guide(model.model.language_model, layer=GUIDED_LAYER), work, seed, clock)
    # The tower sees by then; at first what it would cost goes to the decoder.
    pupil.tower("tower", FIRST, steps.tower, 2e-3)
    pupil.answers("decoder", FIRST, steps.decoder, 1.5e-3, tower=False)
    pupil.answers("base", FIRST, steps.base, 1e-3, tower=True)
    pupil.tower("all-tower", ALL, steps.all_tower, 1.5e-3)
    pupil.answers("all-decoder", ALL, steps.all_decoder, 1.5e-3, tower=False)
    pupil.answers("all-base", ALL, steps.all_base, 1e-3, tower=True)
    pupil.guide.remove()
    with appearing_whole(out) as partial:
        model.save_pretrained(partial)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (untrained / name).exists():
                shutil.copyfile(untrained / name, partial / name)
        shutil.copyfile(
            untrained / "preprocessor_config.json", partial / "preprocessor_config.json"
        )
    return out


@dataclass(frozen=True)
class _Pupil:
    """The model while it learns."""

    model: Qwen3VLForConditionalGeneration
    guide: Guide
    work: Path
    seed: int
    clock: Clock

    @property
    def _untrained(self) -> Path:
        return self.work / "untrained"

    def tower(self, name: str, course: Course, steps: int, learning_rate: float) -> None:
        """Teaches the tower alone."""
        with self.clock.step(name):
            teach_tower(
                self.model.model,
                self._untrained,
                self.work / f"{name}.pt",
                course.lessons,
                config=FitConfig(steps=steps, learning_rate=learning_rate),
                seed=self.seed,
            )

    def answers(
        self, name: str, course: Course, steps: int, learning_rate: float, *, tower: bool
    ) -> None:
        """Teaches the decoder, and the tower with it or not."""
        self.model.model.visual.requires_grad_(tower)
        tokenizer = AutoTokenizer.from_pretrained(self._untrained)
        fit = Fit(
            self.model,
            self.model.model,
            self.model.lm_head,
            FitConfig(steps=steps, learning_rate=learning_rate, warmup=50),
            self.work / f"{name}-state",
            pad_id=tokenizer.pad_token_id,
            guide=self.guide,
        )
        if fit.step >= steps:
            return
        stream = ScreenStream(
            ScreenReader(self._untrained),
            PromptBuilder(tokenizer),
            course.sources,
            seed=self.seed + RESUMED_OFFSET * fit.step + int(tower),
        )
        with self.clock.step(name):
            fit.run(in_background(stream), sources=course.sources_a_step, title=name)


def _corpus(seed: int) -> list[str]:
    """Texts of a few hundred screens, and every system prompt.

    Of both courses: a caption whose words are spelt out in letters takes far longer to be found.
    """
    rng = random.Random(seed)  # noqa: S311 - drawings, not secrets
    systems = {system for source in ALL.sources for system in source.systems if system}
    texts = [f"system\n{system} user assistant" for system in sorted(systems)] * 100
    for _ in range(60):
        for source in (*FIRST.sources, *ALL.sources):
            texts += corpus(source.ask(source.draw(rng), rng, 40))
    return texts
