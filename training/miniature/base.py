"""Pretrains the miniature's base: reading, pointing and writing on every kind of screen.

Knows which screens and system prompts there are; does not know the experts' tasks.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from executor_service.model.prompt import PromptBuilder
from executor_service.model.screen import ScreenReader
from training.miniature.checkpoint import write_untrained
from training.miniature.fit import Fit, FitConfig
from training.miniature.guide import Guide
from training.miniature.questions import base_questions, corpus
from training.miniature.speed import patches_as_products
from training.miniature.stream import ScreenStream, Source, in_background
from training.miniature.tower import teach_tower
from training.screens.calendar import draw_calendar
from training.screens.claim_window import draw_claim_window

# The third of five: two layers before it to read the question, two after it to write the answer.
GUIDED_LAYER = 2
# The server's, and one per expert: an expert was trained with its own.
SERVER_SYSTEM = "You are a computer-use agent."
EXPERT_SYSTEMS = {
    "calendar": "You work the calendar of a dental practice.",
    "claim-window": "You work the claim window of a dental practice.",
}
SYSTEMS: tuple[str | None, ...] = (None, SERVER_SYSTEM, *EXPERT_SYSTEMS.values())


@dataclass(frozen=True)
class _Phase:
    name: str
    steps: int
    learning_rate: float
    tower: bool


def sources(systems: Sequence[str | None] = SYSTEMS) -> list[Source]:
    """Every kind of screen, asked the base's questions."""
    return [
        Source(draw_calendar, base_questions, 3, 18, systems),
        Source(draw_claim_window, base_questions, 2, 18, systems),
    ]


def pretrain(work: Path, *, tower_steps: int, decoder_steps: int, steps: int, seed: int) -> Path:
    """Trains the base from random weights, or goes on where a stopped run left off.

    Args:
        work: Folder of the run; `untrained/` and `base/` are made in it.
        tower_steps: Optimiser steps of the tower alone.
        decoder_steps: Optimiser steps of the decoder alone, after that.
        steps: Optimiser steps of the whole model, at last.
        seed: Of weights and screens.

    Returns:
        The trained checkpoint's directory.
    """
    untrained, out = work / "untrained", work / "base"
    if not (untrained / "config.json").exists():
        write_untrained(untrained, _corpus(seed), seed=seed)
    if (out / "model.safetensors").exists():
        return out
    tokenizer = AutoTokenizer.from_pretrained(untrained)
    model = Qwen3VLForConditionalGeneration.from_pretrained(untrained, dtype=torch.float32)
    patches_as_products(model)
    teach_tower(model.model, untrained, work / "tower.pt", steps=tower_steps, seed=seed)
    guide = Guide(model.model.language_model, layer=GUIDED_LAYER)
    # The tower sees by now; at first what it would cost goes to the decoder.
    for phase in (
        _Phase("decoder", decoder_steps, 1.5e-3, tower=False),
        _Phase("base", steps, 1e-3, tower=True),
    ):
        model.model.visual.requires_grad_(phase.tower)
        fit = Fit(
            model,
            model.model,
            model.lm_head,
            FitConfig(steps=phase.steps, learning_rate=phase.learning_rate, warmup=50),
            work / f"{phase.name}-state",
            pad_id=tokenizer.pad_token_id,
            guide=guide,
        )
        stream = ScreenStream(
            ScreenReader(untrained),
            PromptBuilder(tokenizer),
            sources(),
            seed=seed + 1_000_003 * fit.step + int(phase.tower),
        )
        fit.run(in_background(stream), sources=2, title=phase.name)
    guide.remove()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (untrained / name).exists():
            _copy(untrained / name, out / name)
    _copy(untrained / "preprocessor_config.json", out / "preprocessor_config.json")
    model.save_pretrained(out)
    return out


def _corpus(seed: int) -> list[str]:
    """Texts of a few hundred screens, and every system prompt."""
    rng = random.Random(seed)  # noqa: S311 - drawings, not secrets
    texts = [f"system\n{system} user assistant" for system in SYSTEMS if system] * 100
    for _ in range(60):
        for source in sources():
            texts += corpus(source.ask(source.draw(rng), rng, 40))
    return texts


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())
