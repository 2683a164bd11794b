"""Pretrains the miniature's base: reading, pointing and writing on every kind of screen.

Knows which screens and system prompts there are; does not know the experts' tasks.
"""

from __future__ import annotations

import random
import shutil
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
from training.screens.tasks import CALENDAR, CLAIM_WINDOW, DESKTOP

# The third of five: two layers before it to read the question, two after it to write the answer.
GUIDED_LAYER = 2
# The server's, and one per expert: an expert was trained with its own.
SERVER_SYSTEM = "You are a computer-use agent."
EXPERT_SYSTEMS = {
    expert: f"You work the {expert.replace('-', ' ')} of a dental practice." for expert in EXPERTS
}
# Days and rows are the most to tell apart, and the desktop's writing is the smallest once it is
# scaled down: they are shown more often than the others.
_SHOWN = (*EXPERTS, CALENDAR, CALENDAR, CLAIM_WINDOW, DESKTOP)
SCREENS: tuple[Draw, ...] = tuple(DRAWS[name] for name in _SHOWN)
SOURCES: tuple[Source, ...] = tuple(
    Source(
        DRAWS[name],
        base_questions,
        rows=2 if name == CALENDAR else 1,  # It is small.
        questions=18,
        systems=(None, SERVER_SYSTEM, *EXPERT_SYSTEMS.values()),
    )
    for name in _SHOWN
)
SOURCES_A_STEP = 2


@dataclass(frozen=True)
class Steps:
    """Optimiser steps of the base's phases, in their order."""

    tower: int = 3200
    decoder: int = 1200
    base: int = 2200


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
        write_start(untrained, seed=seed)
    if out.exists():
        return out
    model = Qwen3VLForConditionalGeneration.from_pretrained(
        untrained, dtype=torch.float32, device_map=fastest_device()
    )
    patches_as_products(model)
    attend_in_blocks(model)
    pupil = _Pupil(model, Guide(model.model.language_model, layer=GUIDED_LAYER), work, seed, clock)
    pupil.tower(steps.tower)
    # The tower sees by then; at first what it would cost goes to the decoder.
    pupil.answers("decoder", steps.decoder, 1.5e-3, tower=False)
    pupil.answers("base", steps.base, 1e-3, tower=True)
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


def write_start(out: Path, *, seed: int) -> None:
    """Writes the checkpoint that learning begins with: random weights, a tokenizer of its words.

    Args:
        out: Its folder, which must not be there.
        seed: Of weights and of the texts that the tokenizer is made from.
    """
    with appearing_whole(out) as partial:
        write_untrained(partial, _corpus(seed), seed=seed)


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

    def tower(self, steps: int) -> None:
        """Teaches the tower alone."""
        with self.clock.step("tower"):
            teach_tower(
                self.model.model,
                self._untrained,
                self.work / "tower.pt",
                SCREENS,
                config=FitConfig(steps=steps, learning_rate=2e-3),
                seed=self.seed,
            )

    def answers(self, name: str, steps: int, learning_rate: float, *, tower: bool) -> None:
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
            SOURCES,
            seed=self.seed + RESUMED_OFFSET * fit.step + int(tower),
        )
        with self.clock.step(name):
            fit.run(in_background(stream), sources=SOURCES_A_STEP, title=name)


def _corpus(seed: int) -> list[str]:
    """Texts of a few hundred screens, and every system prompt."""
    rng = random.Random(seed)  # noqa: S311 - drawings, not secrets
    systems = {system for source in SOURCES for system in source.systems if system}
    texts = [f"system\n{system} user assistant" for system in sorted(systems)] * 100
    for _ in range(60):
        for source in SOURCES:
            texts += corpus(source.ask(source.draw(rng), rng, 40))
    return texts
